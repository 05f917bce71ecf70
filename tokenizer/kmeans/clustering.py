"""K-means, the lecture's thought model of a codebook: assign to the nearest mean, move each mean to what it was given.

    vectors (N, D) -> means (K, D)

It starts every codebook (`tokenizer/bottleneck/table.py`) and is, of patches, the simplest tokenizer
(`tokenizer/kmeans/model.py`).

The E step is a mixture's posterior with hard assignment (equal, vanishing variances), the M step its maximum likelihood
mean (Bishop 2006, sec. 9.3.2); neither can raise the mean squared distance. The start is k-means++ (Arthur and
Vassilvitskii 2007), drawn in `ROUNDS` rounds where K is more than that (Bahmani et al. 2012).
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from smalti.common.progress import passing_bar
from smalti.tokenizer.nearest import nearest_indices

ROUNDS = 1024


def kmeans(vectors: Tensor, k: int, *, iterations: int, generator: Generator, spherical: bool = False) -> Tensor:
    """Return `k` means of `vectors` after `iterations` of EM.

    Args:
        vectors: (N, D), N >= k.
        generator: on the device of `vectors`; the only source of randomness.
        spherical: vectors are on the unit sphere and so are the means (Dhillon and Modha 2001).
    Returns:
        (k, D) fp32.
    Raises:
        ValueError: fewer vectors than means, or one that is not finite.
    """
    if len(vectors) < k:
        raise ValueError(f"{k} means need at least as many vectors to start from, got {len(vectors)}")
    if not vectors.isfinite().all():
        raise ValueError("vectors must be finite, got NaN or Inf among them")
    vectors = vectors.float()
    return moved(vectors, plus_plus(vectors, k, generator), iterations=iterations, spherical=spherical)


def moved(vectors: Tensor, means: Tensor, *, iterations: int, spherical: bool = False) -> Tensor:
    """Return means (K, D) after `iterations` of EM from where they are."""
    with passing_bar(iterations, "k-means", unit="EM step") as bar:
        for _ in range(iterations):
            indices = e_step(vectors, means)
            means = m_step(*assigned(vectors, indices, len(means)), means, vectors)
            if spherical:
                means = F.normalize(means, dim=1)
            bar.update()
    return means


@torch.no_grad()
def plus_plus(vectors: Tensor, k: int, generator: Generator) -> Tensor:
    """Return `k` of `vectors`, each drawn in proportion to its squared distance to the nearest yet (k-means++)."""
    N, device = len(vectors), vectors.device
    chosen = torch.randint(N, (1,), generator=generator, device=device)
    distances = torch.full((N,), torch.inf, device=device)
    a_round = -(-k // ROUNDS)  # 1: the plain algorithm
    bar = passing_bar(k, "k-means++", unit="mean")
    while len(chosen) < k:
        fresh = vectors[chosen[-a_round:]]
        distances = torch.minimum(distances, (vectors - fresh[nearest_indices(vectors, fresh)]).square().sum(1))
        cumulative = distances.cumsum(0)
        uniform = torch.rand(min(a_round, k - len(chosen)), generator=generator, device=device)
        chosen = torch.cat([chosen, torch.searchsorted(cumulative, uniform * cumulative[-1]).clamp_max(N - 1)])
        bar.update(len(chosen) - bar.n)
    bar.close()
    return vectors[chosen]


def e_step(vectors: Tensor, means: Tensor) -> Tensor:
    """Return the index of the mean nearest to each vector: (N, D), (K, D) -> (N,)."""
    return nearest_indices(vectors, means)


@torch.no_grad()
def m_step(counts: Tensor, sums: Tensor, means: Tensor, vectors: Tensor) -> Tensor:
    """Return the mean of the vectors of each index; one without vectors moves to a vector that is farthest from all.

    Args:
        counts, sums: (K,) and (K, D), how many vectors each mean was given and their sum, see `assigned`.
        vectors: (N, D) to draw new places for empty means from, all of them or a sample.
    """
    moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], means)
    empty = (counts == 0).nonzero()[: len(vectors), 0]
    if len(empty):
        alive = moved[counts > 0]
        distances = (vectors - alive[nearest_indices(vectors, alive)]).square().sum(1)
        moved[empty] = vectors[distances.topk(len(empty)).indices]
    return moved


@torch.no_grad()
def assigned(vectors: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the number (k,) and the sum (k, D) of the vectors of each index, without a one-hot (N, k)."""
    counts = torch.bincount(indices, minlength=k).to(vectors.dtype)
    sums = vectors.new_zeros(k, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums
