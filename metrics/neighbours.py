"""Exact nearest neighbours, and the share of drawn images that copy training images.

    queries (M, D), rows (N, D) -> distances (M, k), indices (M, k)

Distances are Euclidean, of |x|² + |y|² − 2 x·y in float64, a block of rows at a time: fp32 (or TF32) products lose the
short distances, which are the ones that matter here. Bytes are read as they are, so pixels need no float copy; of bytes
fp32 products lose nothing.

Copies: Meehan et al. 2020 (https://arxiv.org/abs/2004.05675) hold a draw's distance to its nearest training image
against that of held-out images, which were not there to be copied; so does authenticity, Alaa et al. 2022.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from smalti.common.progress import passing_bar

BLOCK = 2**22  # distances held at once, of 8 bytes
EXACT = 1024  # places of bytes whose products are summed in fp32
CACHED = 2**18  # counts of places held at once, of 2 bytes mostly: they stay in a processor's cache


class Nearest(NamedTuple):
    distances: Tensor  # (M, k) float64, ascending
    indices: Tensor  # (M, k) int64, into rows


class Memorised(NamedTuple):
    share: float  # of the drawn images that are as near to a training image as only `quantile` of the held-out ones
    threshold: float  # that distance
    nearest: Nearest  # of each drawn image, k = 1: what to look at


def in_double(features: Tensor) -> Tensor:
    """Return features in float64, on the CPU where the device has none."""
    return (features.cpu() if features.device.type == "mps" else features).double()


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances (M, N) of float64 a (M, D), b (N, D). Equal rows are at 0, whatever rounding leaves."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = norms - 2 * a @ b.T
    return squared.where(squared > 16 * torch.finfo(torch.float64).eps * norms, 0)


def squared_distances_of_bytes(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances (M, N) in float64 of bytes a (M, D), b (N, D), exactly, by products in fp32.

    Of bytes less 128 the products of 1024 places sum to whole numbers of at most 2^24, which fp32 holds.
    """
    a, b = a.float() - 128, b.float() - 128
    norms = a.square().sum(1, dtype=torch.float64)[:, None] + b.square().sum(1, dtype=torch.float64)
    for some, others in zip(a.split(EXACT, dim=1), b.split(EXACT, dim=1), strict=True):
        norms -= 2 * (some @ others.T)
    return norms


def distance_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few rows of a (M, D) at a time, with their distances (rows, N) to b (N, D)."""
    b = in_double(b)
    centre = b.mean(0)  # distances are the same from any origin; rounding is relative to the norms, smallest from here
    b = b - centre
    step = max(1, BLOCK // max(1, len(b)))
    with passing_bar(len(a), f"distances to {len(b)}") as bar:
        for start in range(0, len(a), step):
            rows = slice(start, start + step)
            yield rows, squared_distances(in_double(a[rows]) - centre, b).sqrt()
            bar.update(min(step, len(a) - start))


def nearest_rows(queries: Tensor, rows: Tensor, k: int = 1) -> Nearest:
    """Return the k rows nearest to each query, of any type; neither is held as floats as a whole.

    Raises:
        ValueError: k is no number of rows there are, or queries are of another width.
    """
    if not 1 <= k <= len(rows):
        raise ValueError(f"k must lie in [1, {len(rows)}], the rows there are, got {k}")
    if queries.ndim != 2 or rows.ndim != 2 or queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"queries (M, D) and rows (N, D) must share D, got {tuple(queries.shape)}, {tuple(rows.shape)}"
        )
    side = int(BLOCK**0.5)
    blocks = queries.split(side)
    with passing_bar(len(blocks) * len(rows), f"nearest of {len(rows)}") as bar:
        found = [_nearest_to_few(block, rows, k, BLOCK // side, bar) for block in blocks]
    return Nearest(*(torch.cat(column) for column in zip(*found, strict=True)))


def _nearest_to_few(queries: Tensor, rows: Tensor, k: int, step: int, bar: tqdm) -> Nearest:
    """Return the same for queries (m, D) in memory: compare the best k so far with each block of rows."""
    bytes_alone = queries.dtype == rows.dtype == torch.uint8 and queries.device.type != "mps"  # which has no float64
    queries = queries if bytes_alone else in_double(queries)
    best = torch.empty(len(queries), 0, dtype=torch.float64, device=queries.device)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].to(queries.device)
        here = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
        squared = squared_distances_of_bytes if bytes_alone else squared_distances
        candidates = torch.cat([best, squared(queries, block if bytes_alone else block.double())], 1)
        best, chosen = candidates.topk(min(k, candidates.shape[1]), largest=False)
        indices = torch.cat([indices, here], 1).gather(1, chosen)
        bar.update(len(block))
    return Nearest(best.sqrt(), indices)


def nearest_codes(queries: Tensor, rows: Tensor, k: int = 1) -> Nearest:
    """Return the k rows (N, T) that differ from each query (M, T) in the fewest places; distances are those counts."""
    if not 1 <= k <= len(rows) or queries.shape[1:] != rows.shape[1:]:
        raise ValueError(f"k must lie in [1, {len(rows)}] and rows be as wide as queries, got {k}, {tuple(rows.shape)}")
    if rows.device != queries.device:
        rows = rows.to(queries.device)
    places = [_whole(each).T.contiguous() for each in (queries, rows)]  # (T, M), (T, N)
    found = []
    with passing_bar(len(queries), f"nearest codes of {len(rows)}") as bar:
        for block in places[0].split(max(1, CACHED // len(rows)), dim=1):
            found.append(_differences(block, places[1]).topk(k, largest=False))
            bar.update(block.shape[1])
    distances, indices = (torch.cat(column) for column in zip(*found, strict=True))
    return Nearest(distances.double(), indices)


def _whole(codes: Tensor) -> Tensor:
    """Return codes in the smallest of the types that comparing them in is fast, which holds counts of places too."""
    most = max(int(codes.max()) if codes.numel() else 0, codes.shape[1])
    return codes.to(next(kind for kind in (torch.int16, torch.int32, torch.int64) if most <= torch.iinfo(kind).max))


def _differences(queries: Tensor, rows: Tensor) -> Tensor:
    """Return in how many places queries (T, m) and rows (T, N) differ, (m, N), one place after the other."""
    kind = torch.promote_types(queries.dtype, rows.dtype)
    differ = torch.empty(queries.shape[1], rows.shape[1], dtype=kind, device=rows.device)
    counts = torch.zeros_like(differ)
    for wanted, there in zip(queries[..., None], rows, strict=True):
        counts += torch.ne(wanted, there, out=differ)  # a comparison into bools is not vectorised
    return counts


def measure_memorisation(
    drawn: Tensor,
    train: Tensor,
    held_out: Tensor,
    quantile: float = 0.01,
    search: Callable[[Tensor, Tensor], Nearest] = nearest_rows,
) -> Memorised:
    """Return the share of drawn images nearer to a training image than all but `quantile` of the held-out images.

    A model that learned the distribution has about `quantile`, one that copies has 1. In which space is the caller's
    choice: flattened pixels find copies, features find copies that were moved or recoloured. Held-out images that are
    copies of training images themselves make the threshold 0, and then only exact copies count.

    Args:
        drawn, train, held_out: (M, D), (N, D), (V, D) of any type.
        search: `nearest`, or `nearest_codes`.
    """
    if not (len(held_out) and len(drawn)):
        raise ValueError(
            f"copies are found by holding drawn images against held-out ones, got {len(drawn)}, {len(held_out)}"
        )
    threshold = search(held_out, train).distances.quantile(quantile).item()
    found = search(drawn, train)
    return Memorised((found.distances <= threshold).double().mean().item(), threshold, found)
