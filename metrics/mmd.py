"""The maximum mean discrepancy, by which two sets of vectors differ in distribution.

    MMD²(p, q) = E k(a, a′) − 2 E k(a, b) + E k(b, b′)        Gretton et al. (2012), eq. 3

The kernel is a sum of inverse multiquadrics C / (C + |a − b|²) of several C, as of the Wasserstein autoencoder
(Tolstikhin et al. 2018, https://arxiv.org/abs/1711.01558, sec. 4): heavy tails give vectors far from the prior a
gradient, and no single bandwidth has to fit.
"""

import torch
from torch import Tensor

BANDWIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # times the mean squared distance of two draws of N(0, I)


def mmd_squared(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased estimate of MMD² of vectors (N, D) and (M, D), (): it has a gradient, and may be below 0.

    Raises:
        ValueError: fewer than two vectors in either set.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"at least two vectors of each set, got {len(a)} and {len(b)}")
    a, b = a.float(), b.float()
    return _within(a) + _within(b) - 2 * _kernel(a, b).mean()


def _within(a: Tensor) -> Tensor:
    """Return the mean of the kernel over pairs of different vectors."""
    kernel = _kernel(a, a)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel of all pairs, (N, M)."""
    squared = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
    spread = 2.0 * a.shape[1]
    return torch.stack([c * spread / (c * spread + squared) for c in BANDWIDTHS]).sum(0)
