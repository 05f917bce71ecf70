"""Which codebook vector is nearest, exactly and without an N x K matrix.

    vectors (N, D), codebook (K, D) -> indices (N,) int64 in [0, K)

‖v − e‖² = ‖v‖² − 2 v·e + ‖e‖², so the nearest e has the least ‖e‖²/2 − v·e. Scores are computed a tile at a time in
one reused buffer, and K is searched as blocks whose minima are taken first: `amin` is vectorised on a CPU and `argmin`
is not (0.1 against 0.9 ns an element). Of several equally near vectors the one with the lowest index is taken.
"""

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 4 * 2**20}  # stays in a core's cache
LARGE_TILE_BYTES = 256 * 2**20  # an accelerator wants work
BLOCKS = 16


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook vector nearest to each of `vectors`, in fp32 whatever comes.

    Args:
        vectors: (N, D).
        codebook: (K, D).
    Returns:
        (N,) int64. Ties go to the lowest index.
    """
    vectors, codebook = vectors.float(), codebook.float()
    N, K = len(vectors), len(codebook)
    columns = -(-K // BLOCKS) * BLOCKS  # K, padded to whole blocks with vectors that are infinitely far
    offset = vectors.new_full((columns,), torch.inf)
    offset[:K] = codebook.square().sum(1) / 2
    table = vectors.new_zeros(vectors.shape[1], columns)
    table[:, :K] = codebook.T

    rows = max(1, min(N, TILE_BYTES.get(vectors.device.type, LARGE_TILE_BYTES) // (4 * columns)))
    tile = vectors.new_empty(rows, columns)
    indices = torch.empty(N, dtype=torch.int64, device=vectors.device)
    for start in range(0, N, rows):
        part = vectors[start : start + rows]
        scores = torch.addmm(offset, part, table, alpha=-1, out=tile[: len(part)])
        blocks = scores.view(len(part), BLOCKS, -1)  # (n, blocks, K / blocks)
        block = blocks.amin(2).argmin(1)  # (n,)
        inside = blocks[torch.arange(len(part), device=part.device), block].argmin(1)
        indices[start : start + rows] = block * blocks.shape[2] + inside
    return indices
