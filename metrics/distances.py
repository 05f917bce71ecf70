"""Distances between a set of drawn images and a set of real ones: pure functions of features, in float64 and in blocks.

    features (N, D) of any float type; real (N, D), drawn (M, D)

    Fréchet distance  |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½): Dowson and Landau 1982; of images Heusel et al. 2017
    kernel distance       unbiased MMD² of the kernel (x·y / D + 1)³: Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401
    precision, recall     Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991
    density, coverage     Naeem et al. 2020, https://arxiv.org/abs/2002.09797

The Fréchet distance falls with the number of images (the covariance of few is biased): compare figures of equal
numbers. The kernel distance does not, and may come out below 0 where the sets are alike.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from smalti.common.progress import passing_bar
from smalti.metrics.neighbours import BLOCK, distance_blocks, in_double

SLACK = 1e-9  # of a radius in fp64, whose rounding is a thousandth of it


class Moments(NamedTuple):
    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64, unbiased
    number: int  # of images


class PrecisionRecall(NamedTuple):
    precision: float  # share of drawn images that lie where real ones do
    recall: float  # share of real images that lie where drawn ones do


class DensityCoverage(NamedTuple):
    density: float  # how many real neighbourhoods a drawn image lies in, over k: about 1 where the sets are alike
    coverage: float  # share of real neighbourhoods with a drawn image in them


# --------------------------------------------------------------------------------------------- of Gaussians, of kernels


def moments(features: Tensor) -> Moments:
    """Return mean and covariance of features (N, D). Raises `ValueError` when there are fewer than two."""
    _check(features, features, 2)
    N, D = features.shape
    blocks = features.split(max(1, BLOCK // D))
    mean = sum((in_double(block).sum(0) for block in blocks), in_double(features.new_zeros(D))) / N
    around = (in_double(block) - mean for block in blocks)
    return Moments(mean, sum((block.T @ block for block in around), in_double(features.new_zeros(D, D))) / (N - 1), N)


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance, 0 for equal moments. Raises `ValueError` unless there are more images than features.

    The root's trace is the sum of the roots of the eigenvalues of Σ_a^½ Σ_b Σ_a^½, which is symmetric.
    """
    features, images = len(a.mean), min(a.number, b.number)
    if images <= features:
        raise ValueError(f"{images} images give no covariance of {features} features; compare more than {features}")
    difference = a.mean - b.mean
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt()
    return (difference @ difference + a.covariance.trace() + b.covariance.trace() - 2 * roots.sum()).item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance of features (N, D) and (M, D). Raises as `frechet_from_moments`."""
    _check(a, b, 2)
    return frechet_from_moments(moments(a), moments(b))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the kernel distance of features (N, D) and (M, D), over all pairs: without subsets, seed or deviation."""
    _check(a, b, 2)
    N, M = len(a), len(b)
    within_a, within_b = _kernel_sum(a, a) - _kernel_diagonal(a), _kernel_sum(b, b) - _kernel_diagonal(b)
    return within_a / (N * (N - 1)) + within_b / (M * (M - 1)) - 2 * _kernel_sum(a, b) / (N * M)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Return Σ_ij k(a_i, b_j)."""
    b = in_double(b)
    step, total = max(1, BLOCK // len(b)), 0.0
    with passing_bar(len(a), "kernel distance") as bar:
        for rows in a.split(step):
            total += (in_double(rows) @ b.T / b.shape[1] + 1).pow(3).sum().item()
            bar.update(len(rows))
    return total


def _kernel_diagonal(a: Tensor) -> float:
    """Return Σ_i k(a_i, a_i)."""
    return (in_double(a).square().mean(1) + 1).pow(3).sum().item()


# ---------------------------------------------------------------------------------------------------- of neighbourhoods


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> PrecisionRecall:
    """Return the shares of drawn and of real images that lie where the other set does.

    A set lies in the union of balls around its images, each as wide as the distance to its k-th neighbour in the set.

    Raises:
        ValueError: k neighbours need more than k images in either set.
    """
    _check(real, drawn, k + 1)
    real_radii, drawn_radii = _radii(real, k), _radii(drawn, k)
    precise, recalled = 0, torch.zeros(len(real), dtype=torch.bool, device=real_radii.device)
    for rows, distances in distance_blocks(drawn, real):  # (m, N)
        precise += int((distances <= real_radii).any(1).sum())
        recalled |= (distances <= drawn_radii[rows, None]).any(0)
    return PrecisionRecall(precise / len(drawn), recalled.double().mean().item())


def density_coverage(real: Tensor, drawn: Tensor, k: int = 5) -> DensityCoverage:
    """Return density and coverage, from balls around real images alone.

    A wide ball around one real outlier counts only once in k, and drawn outliers have none.

    Raises:
        ValueError: k neighbours need more than k images in either set.
    """
    _check(real, drawn, k + 1)
    radii = _radii(real, k)
    within, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=radii.device)
    for _, distances in distance_blocks(drawn, real):  # (m, N)
        inside = distances <= radii
        within += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(within / (k * len(drawn)), covered.double().mean().item())


def _radii(features: Tensor, k: int) -> Tensor:
    """Return the distance (N,) from each of features (N, D) to its k-th neighbour; the nearest of all is itself.

    It is longer by `SLACK`: a product may round another way from there to here, and the neighbour lies in the ball.
    """
    blocks = distance_blocks(features, features)
    return torch.cat([distances.kthvalue(k + 1).values for _, distances in blocks]) * (1 + SLACK)


def _check(a: Tensor, b: Tensor, fewest: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D) with one D, got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < fewest:
        raise ValueError(f"at least {fewest} images of either kind are needed, got {len(a)} and {len(b)}; compare more")
