"""The search of `tokenizer/nearest.py` as a fused kernel: no score ever leaves the chip.

    vectors (N, D), codebook (K, D) -> indices (N,) int64 in [0, K)

Vectors v and codes e are taken from the codebook's mean, as there: TF32 has so few digits that at an offset of 30 one
code in eight was wrong. Two kernels. The first scores v·e − ‖e‖²/2 on the tensor cores in TF32: a program takes ROWS
vectors through its share of the codebook, LANES codes at a time, each lane keeping the best of the codes that passed
through it, and writes down the codes of its KEPT best lanes. The second computes ‖v − e‖² of these few candidates in
fp32 and takes the least.

What is exact: the order among candidates (fp32, ties to the lowest index). What is not: who is a candidate. TF32 rounds
or cuts each factor to 11 bits, so a score errs by at most ε = 2⁻⁹ ‖v‖ ‖e‖ (Cauchy-Schwarz), typically far less. The
nearest code is missed only if another code of its lane, or KEPT codes of other lanes, score within 2ε of it; the code
taken instead then scores within 2ε of it too, so its squared distance is greater by no more than 4ε. Of LANES = 128
lanes such a near tie shares its own once in 128 times.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from smalti.tokenizer.codebooks.centre import centre_of

ROWS, LANES, KEPT = 64, 128, 4
PROGRAMS = 512  # a few for each processor of a large GPU; below that the codebook is shared out
MAX_SHARES = 8


@triton.jit
def load_block(base, rows, dims, row_stride, dim_stride, row_count, D):
    """Return a block (rows, dims) of a matrix in fp32, zero outside the matrix."""
    inside = (rows < row_count)[:, None] & (dims < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + dims[None, :] * dim_stride
    return tl.load(base + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_best_lanes(place, mask, best, code, K, KEPT: tl.constexpr):
    """Write the codes of the KEPT lanes with the greatest scores of each row, best and code (rows, lanes)."""
    for kept in tl.static_range(KEPT):
        greatest = tl.max(best, 1)
        chosen = tl.min(tl.where(best == greatest[:, None], code, K - 1), 1)  # of equal lanes the lowest code
        tl.store(place + kept, chosen, mask=mask)
        best = tl.where(code == chosen[:, None], float("-inf"), best)


@triton.jit
def search_kernel(
    vectors,
    codebook,
    offsets,
    candidates,
    N,
    K,
    share,
    vector_row,
    vector_dim,
    code_row,
    code_dim,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Write candidates (N, shares, KEPT) int32: the codes of the best lanes of each share of the codebook."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    first = tl.program_id(1) * share
    best = tl.full((ROWS, LANES), float("-inf"), tl.float32)
    code = tl.zeros((ROWS, LANES), tl.int32)
    for start in range(first, tl.minimum(first + share, K), LANES):
        codes = start + lanes
        score = tl.zeros((ROWS, LANES), tl.float32)
        for d in range(0, D, DIMS):  # unrolled, all blocks of a long vector would want a place on the chip at once
            dims = d + tl.arange(0, DIMS)
            v = load_block(vectors, rows, dims, vector_row, vector_dim, N, D)
            e = load_block(codebook, codes, dims, code_row, code_dim, K, D)
            score = tl.dot(v, tl.trans(e), score, input_precision="tf32")
        score -= tl.load(offsets + codes, mask=codes < K, other=float("inf"))[None, :]
        better = score > best  # not >=: of a lane's equals the first stays
        best = tl.where(better, score, best)
        code = tl.where(better, codes[None, :], code)

    place = candidates + (rows.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * KEPT
    store_best_lanes(place, rows < N, best, code, K, KEPT)


@triton.jit
def choose_kernel(
    vectors,
    codebook,
    candidates,
    indices,
    N,
    K,
    count,
    vector_row,
    vector_dim,
    code_row,
    code_dim,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write indices (N,) int64: the nearest of `count` candidates of each vector, in fp32."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    least = tl.full((ROWS,), float("inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32) + (K - 1)
    for candidate in range(count):
        code = tl.load(candidates + rows.to(tl.int64) * count + candidate, mask=rows < N, other=0)
        distance = tl.zeros((ROWS,), tl.float32)
        for d in range(0, D, DIMS):
            dims = d + tl.arange(0, DIMS)
            v = load_block(vectors, rows, dims, vector_row, vector_dim, N, D)
            e = load_block(codebook, code, dims, code_row, code_dim, K, D)
            distance += tl.sum((v - e) * (v - e), 1)
        better = (distance < least) | ((distance == least) & (code < index))
        least = tl.where(better, distance, least)
        index = tl.where(better, code, index)
    tl.store(indices + rows, index.to(tl.int64), mask=rows < N)


def block_dims(D: int) -> int:
    """Return the dimensions multiplied at once: a tensor core takes 16; more than 32 crowd a small GPU's memory."""
    return min(32, max(16, triton.next_power_of_2(D)))


@torch.no_grad()
def nearest_fused(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest code of each vector; all lie on one CUDA device. See the module.

    Args:
        vectors: (N, D), of any floating type and strides.
        codebook: (K, D), likewise.
    Returns:
        (N,) int64.
    """
    N, D = vectors.shape
    K = len(codebook)
    indices = torch.empty(N, dtype=torch.int64, device=vectors.device)
    if not N:
        return indices
    blocks = triton.cdiv(N, ROWS)
    shares = min(MAX_SHARES, triton.cdiv(PROGRAMS, blocks), triton.cdiv(K, LANES))
    share = triton.cdiv(triton.cdiv(K, LANES), shares) * LANES  # whole tiles of the codebook
    candidates = torch.empty(N, shares, KEPT, dtype=torch.int32, device=vectors.device)
    centre = centre_of(codebook)
    v, e = vectors.float() - centre, codebook.float() - centre
    offsets = e.square().sum(1) / 2  # under autocast vecdot would be bf16
    sizes = {"D": D, "DIMS": block_dims(D), "ROWS": ROWS}
    lanes = {"LANES": LANES, "KEPT": KEPT}
    strides = (*v.stride(), *e.stride())
    with torch.cuda.device(vectors.device) if vectors.is_cuda else nullcontext():  # Triton starts on the current one
        search_kernel[(blocks, shares)](
            v, e, offsets, candidates, N, K, share, *strides, **sizes, **lanes, num_warps=8, num_stages=2
        )
        choose_kernel[(blocks,)](v, e, candidates, indices, N, K, shares * KEPT, *strides, **sizes, num_warps=4)
    return indices
