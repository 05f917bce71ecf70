"""K-means, the lecture's thought model of a codebook: assign to the nearest mean, move each mean to what it was given.

    vectors (N, D) -> means (K, D)

The E step is a mixture's posterior with hard assignment, the M step its maximum likelihood mean (Bishop 2006, sec.
9.3.2); neither can raise the mean squared distance. The start is k-means++ (Arthur and Vassilvitskii 2007).
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tokenizer.nearest import nearest


@torch.no_grad()
def kmeans(vectors: Tensor, k: int, *, iterations: int, generator: Generator, spherical: bool = False) -> Tensor:
    """`k` means of `vectors` after `iterations` of EM.

    Args:
        vectors: (N, D), N >= k.
        generator: on the device of `vectors`; the only source of randomness.
        spherical: vectors are on the unit sphere and so are the means (Dhillon and Modha 2001).
    Returns:
        (k, D) fp32.
    Raises:
        ValueError: fewer vectors than means.
    """
    if len(vectors) < k:
        raise ValueError(f"{k} means need at least as many vectors to start from, got {len(vectors)}")
    vectors = vectors.float()
    means = plus_plus(vectors, k, generator)
    for _ in range(iterations):
        means = m_step(vectors, nearest(vectors, means), means)
        if spherical:
            means = F.normalize(means, dim=1)
    return means


def plus_plus(vectors: Tensor, k: int, generator: Generator) -> Tensor:
    """k-means++: each further mean is one of `vectors`, drawn in proportion to its squared distance to the nearest yet."""
    N = len(vectors)
    chosen = torch.empty(k, dtype=torch.int64, device=vectors.device)
    chosen[0] = torch.randint(N, (1,), generator=generator, device=vectors.device)
    distances = torch.full((N,), torch.inf, device=vectors.device)
    uniform = torch.rand(k, generator=generator, device=vectors.device)
    for i in range(1, k):
        distances = torch.minimum(distances, (vectors - vectors[chosen[i - 1]]).square().sum(1))
        cumulative = distances.cumsum(0)
        chosen[i] = torch.searchsorted(cumulative, uniform[i] * cumulative[-1]).clamp_max(N - 1)
    return vectors[chosen]


def m_step(vectors: Tensor, indices: Tensor, means: Tensor) -> Tensor:
    """Each mean of the vectors assigned to it; a mean without any goes to the vectors that are farthest from theirs."""
    counts, sums = assigned(vectors, indices, len(means))
    moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], means)
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        distances = (vectors - moved[indices]).square().sum(1)
        moved[empty] = vectors[distances.topk(len(empty)).indices]
    return moved


def assigned(vectors: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many vectors each index was given (k,), and their sum (k, D), without a one-hot (N, k)."""
    counts = torch.bincount(indices, minlength=k).to(vectors.dtype)
    sums = vectors.new_zeros(k, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums
