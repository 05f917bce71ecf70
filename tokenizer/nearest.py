"""The exact search for the nearest codebook vector, without an N x K matrix.

    vectors (N, D), codebook (K, D) -> indices (N,) int64 in [0, K)

‖v − e‖² = ‖v‖² − 2 v·e + ‖e‖², so the nearest e has the greatest score v·e − ‖e‖²/2, which is one product of
[e, −‖e‖²/2] with [v, 1]. Scores are computed a tile of C codes by n vectors at a time in one reused buffer, and each
vector keeps the best of the tiles so far: the memory depends on neither N nor K, but for a score and an index a vector.

Both v and e are first taken from the codebook's mean, which changes no distance: far from the origin ‖e‖² would leave
no digits for the differences. "Exactly" is up to the rounding of fp32: of codes whose scores differ by less, either may
be taken. Of codes that score the same, the one with the lowest index is. On CUDA a fused kernel searches
(`tokenizer/nearest_triton.py`), once it has given this file's codes on that device.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from smalti.tokenizer.codebooks.centre import centre_of

CPU_TILE = (512, 2048)  # codes, vectors: 4 MB of scores, which a core or two keep in their cache
ACCELERATOR_TILE = (1024, 4096)  # 16 MB
GROUPS = 4  # parts of a tile's vectors, which threads share
STEP = 16  # codes; a register's worth
TABLE_BYTES = 4 * 2**20  # of the codebook's copy that is searched at once
CHECKED_AT = 30.0  # the mean of the self-check's vectors: at the origin it would not see that nothing is centred
MANY_TILES = 16  # of codes, from which on a CPU looks for the best code in the best tile alone
NEAR_TIES = 3  # of the self-check's 777 codes: what TF32 may miss, where a block that is forgotten costs nine or more


def nearest_indices(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest code of each vector, computed in fp32 from any type.

    Args:
        vectors: (N, D).
        codebook: (K, D).
    Returns:
        (N,) int64. Ties go to the lowest index; a vector that is not finite gets some index.
    """
    if in_one_product(vectors):
        return nearest_plain(vectors.T[None], codebook)[0]
    if vectors.is_cuda and len(vectors) and kernel_is_trusted(vectors.shape[1], vectors.device):
        from smalti.tokenizer.nearest_triton import nearest_fused  # not every torch comes with triton

        return nearest_fused(vectors, codebook)
    return nearest_tiled(vectors.T[None], codebook)[0]


def nearest_places(z_e: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest code of each place, (B, P), of z_e (B, D, P), which is not transposed on a CPU."""
    if in_one_product(z_e):
        return nearest_plain(z_e, codebook)
    if z_e.is_cuda:
        return nearest_indices(rearrange(z_e, "b d p -> (b p) d"), codebook).view(len(z_e), -1)
    return nearest_tiled(z_e, codebook)


def in_one_product(vectors: Tensor) -> bool:
    """Return whether nothing is computed: a graph is exported, or memory is counted on tensors without data."""
    return torch.compiler.is_exporting() or isinstance(vectors, FakeTensor)


@torch.no_grad()
def nearest_plain(columns: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes (B, n) of columns (B, D, n), by one product, of which a graph can be exported.

    Of codes that score the same the first is taken, as in `nearest_tiled`.
    """
    centre = centre_of(codebook)
    table = codebook.float() - centre
    return (table @ (columns.float() - centre[:, None]) - table.square().sum(1, keepdim=True) / 2).argmax(1)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products in fp32, also where training allows TF32 or bf16, which can pick the wrong neighbour."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@torch.no_grad()
@full_precision()
def nearest_tiled(columns: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes (B, n) of columns (B, D, n), in PyTorch alone; the fused kernel is held against it."""
    B, D, n = columns.shape
    indices = torch.zeros(B, n, dtype=torch.int64, device=columns.device)
    if not indices.numel():
        return indices
    most_codes, most_vectors = CPU_TILE if columns.device.type == "cpu" else ACCELERATOR_TILE
    centre = centre_of(codebook)
    rows = -(-len(codebook) // -(-len(codebook) // most_codes) // STEP) * STEP  # of a tile: all alike, none much padded
    tile = columns.new_empty(rows * min(most_vectors, B * n), dtype=torch.float32)
    best = columns.new_full((B, n), -torch.inf, dtype=torch.float32)
    images = max(1, most_vectors // n)
    first = 0
    for some_codes in codebook.split(max(1, TABLE_BYTES // (4 * (D + 1) * rows)) * rows):
        tiles = code_table(some_codes, centre, multiple=rows).split(rows)
        for some, *found in zip(columns.split(images), best.split(images), indices.split(images), strict=True):
            for part, *kept in zip(
                some.split(most_vectors, 2), *(each.split(most_vectors, 1) for each in found), strict=True
            ):
                search_tiles(tiles, first, grouped(part, centre), tile, *kept)
        first += len(some_codes)
    return indices.clamp_(max=len(codebook) - 1)


def search_tiles(
    tiles: Sequence[Tensor], first: int, queries: Tensor, tile: Tensor, best: Tensor, indices: Tensor
) -> None:
    """Update `best` and `indices` of queries (groups, D + 1, n) by tiles (C, D + 1) of codes from `first` on."""
    if best.device.type == "cpu" and len(tiles) >= MANY_TILES:
        search_many_tiles(tiles, first, queries, tile, best, indices)
        return
    for number, codes in enumerate(tiles):
        score, code = (each.reshape(best.shape) for each in first_maximum(tile_scores(codes, queries, tile)))
        better = score > best  # not >=: an earlier tile has the lower index
        torch.where(better, score, best, out=best)
        torch.where(better, code + (first + number * len(codes)), indices, out=indices)


def search_many_tiles(
    tiles: Sequence[Tensor], first: int, queries: Tensor, tile: Tensor, best: Tensor, indices: Tensor
) -> None:
    """Do the same in two passes: the greatest score of each tile, then the code that has it, in the best tile alone.

    A maximum without its index takes half of the time of one with it (0.1 ns an element) where codes lie side by side,
    and a product over few dimensions is faster so. The second pass is one tile's, of many.
    """
    rows = queries.transpose(1, 2)  # (groups, n, D + 1)
    groups, n, _ = rows.shape
    out = tile[: groups * n * len(tiles[0])].view(groups, n, -1)
    each = [torch.bmm(rows, codes.T.expand(groups, -1, -1), out=out).amax(2) for codes in tiles]
    score, number = torch.stack(each).flatten(1).max(0)  # of equal ones the first
    better = score > best.flatten()
    torch.where(better, score, best.flatten(), out=best.view(-1))
    rows, found = rows.flatten(0, 1), indices.view(-1)
    for t, codes in enumerate(tiles):
        places = (better & (number == t)).nonzero()[:, 0]
        if len(places):
            scores = torch.empty(len(places), len(codes), device=rows.device)  # as out, which autocast leaves alone
            found[places] = torch.mm(rows[places], codes.T, out=scores).argmax(1) + (first + t * len(codes))


def code_table(codebook: Tensor, centre: Tensor, multiple: int) -> Tensor:
    """Return the table that is searched: (K, D) -> (K or somewhat more, D + 1) fp32, each e beside its −‖e‖²/2.

    The last row is repeated to a `multiple`.

    Tiles have one size, a multiple of `STEP`, because products of another shape may round another way: copies of one
    vector could then score differently, and the first of them lose.
    """
    K, D = codebook.shape
    table = torch.empty(-(-K // multiple) * multiple, D + 1, device=codebook.device)
    for rows, some in zip(table[:K].split(4096), codebook.split(4096), strict=True):  # which is all the memory besides
        torch.sub(some.float(), centre, out=rows[:, :D])
        torch.linalg.vecdot(rows[:, :D], rows[:, :D], out=rows[:, D]).div_(-2)
    table[K:] = table[K - 1]
    return table


def grouped(columns: Tensor, centre: Tensor) -> Tensor:
    """Return queries, each column, from the centre, above a 1: (b, D, n) -> (groups, D + 1, b n / groups) fp32.

    A single image is divided into groups, for the threads.
    """
    b, D, n = columns.shape
    if b == 1 and n % GROUPS == 0:
        columns = rearrange(columns, "1 d (g n) -> g d n", g=GROUPS)
    queries = torch.ones(len(columns), D + 1, columns.shape[2], device=columns.device)
    torch.sub(columns.float(), centre[:, None], out=queries[:, :D])
    return queries


def tile_scores(codes: Tensor, queries: Tensor, tile: Tensor) -> Tensor:
    """Return the scores (groups, C, n), in `tile`'s memory, of codes (C, D + 1): the greatest where nearest."""
    groups, _, n = queries.shape
    out = tile[: groups * len(codes) * n].view(groups, len(codes), n)
    return torch.bmm(codes.expand(groups, -1, -1), queries, out=out)


def first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest of scores (groups, C, n) and their first indices, both (groups, n).

    On a CPU, `max` and `argmax` compare one element at a time (0.5 to 1.4 ns each) and max pooling, which finds the
    same, a vector register at a time (0.2 ns) where channels come last: so the n columns are its channels.
    """
    if scores.device.type != "cpu":
        return scores.max(1)
    image = scores.unsqueeze(2).permute(0, 3, 1, 2)  # (groups, n, C, 1), whose strides torch takes for channels last
    best, index = F.max_pool2d(image, (image.shape[2], 1), return_indices=True)
    return best[:, :, 0, 0], index[:, :, 0, 0]


@cache
def kernel_is_trusted(D: int, device: torch.device) -> bool:
    """Return whether the fused kernel runs here and finds what `nearest_tiled` finds. Warns once where it does not."""
    try:
        from smalti.tokenizer.nearest_triton import nearest_fused

        why = disagreement(nearest_fused, D, device)
    except Exception as error:  # no triton, no compiler, a kernel this device cannot hold: all have the same answer
        why = f"it does not run ({type(error).__name__}: {error})"
    if why:
        warnings.warn(f"codes of {D} dimensions are searched without the fused kernel on {device}: {why}", stacklevel=3)
    return not why


def disagreement(fused: Callable[[Tensor, Tensor], Tensor], D: int, device: torch.device) -> str | None:
    """Return what is wrong with a search's answer to a small random problem, or None."""
    generator = torch.Generator().manual_seed(0)  # its own: the training's random numbers stay what they are
    vectors, codebook = ((torch.randn(size, D, generator=generator) + CHECKED_AT).to(device) for size in (777, 1333))
    found, expected = fused(vectors, codebook), nearest_tiled(vectors.T[None], codebook)[0]
    if (
        found.dtype != expected.dtype
        or found.shape != expected.shape
        or found.amin() < 0
        or found.amax() >= len(codebook)
    ):
        return "it returns what are no codes"
    reached, least = ((vectors.double() - codebook[codes].double()).square().sum(1) for codes in (found, expected))
    # Distances are of the size of D, and fp32 rounds them to 1e-7 of it.
    wrong = (reached - least > 1e-5 * (1 + D)).sum().item()
    return f"of {len(vectors)} codes {wrong} are not the nearest" if wrong > NEAR_TIES else None
