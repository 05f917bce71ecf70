"""The search for the nearest code, at all sizes, types and settings."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from smalti.tokenizer.nearest import CPU_TILE, MANY_TILES, disagreement, nearest_indices, nearest_places

CODES, VECTORS = CPU_TILE
ROOT = Path(__file__).resolve().parents[1]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_nearest(found: torch.Tensor, vectors: torch.Tensor, codebook: torch.Tensor) -> None:
    """Check by distances in fp64 that every code found is as near as the nearest one."""
    distances = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    reached = distances.gather(1, found[:, None])[:, 0]
    # fp32 rounding decides between near codes: any code within 1e-5 of the vectors' size of the nearest is right.
    size = vectors.double().square().sum(1) + codebook.double().square().sum(1).amax()
    assert (reached - distances.amin(1) <= 1e-5 * size).all()


@pytest.mark.parametrize(
    "N, D, K",
    [
        (1, 1, 1),
        (3, 5, 16),
        (700, 3, 17),
        (VECTORS + 1, 8, CODES - 1),  # one vector more than a tile
        (30, 7, CODES + 1),  # one code more than a tile
        (VECTORS + 37, 2, 3 * CODES + 5),  # the best code is carried over four tiles
        (4, 300, 2 * CODES),
        (VECTORS // 8 + 3, 2, MANY_TILES * CODES + 5),  # as many tiles as are searched in two passes
    ],
)
def test_the_tiled_search_is_the_plain_search(N, D, K):
    vectors, codebook = draw(N, D), draw(K, D, seed=1)
    found = nearest_indices(vectors, codebook)
    assert found.dtype == torch.int64 and found.shape == (N,)
    assert_nearest(found, vectors, codebook)


@pytest.mark.parametrize("offset", [30.0, 1000.0, -1e5])
@pytest.mark.parametrize("D", [2, 40])
def test_vectors_far_from_the_origin_find_the_codes_they_find_at_it(offset, D):
    """In TF32, with vectors and codes at an offset of 30, 12% of codes were wrong; in fp32, at 1000, as many."""
    at = offset + torch.arange(D)  # whole numbers, and coarse vectors: both are exact in fp32, also their sum
    vectors, codebook = ((64 * draw(n, D, seed=n)).round() / 64 for n in (300, CODES + 9))
    found, expected = nearest_indices(vectors + at, codebook + at), nearest_indices(vectors, codebook)
    assert_nearest(found, vectors, codebook)
    assert (found == expected).float().mean() > 0.98  # these coarse vectors have ties, which rounding decides


def test_every_code_can_be_found():
    codebook = draw(3 * CODES + 5, 6)
    assert torch.equal(nearest_indices(codebook, codebook), torch.arange(len(codebook)))


def test_of_equally_near_codes_the_first_is_taken():
    codebook = torch.tensor([[1.0, 0.0]] * 40 + [[0.0, 1.0]] * 40)
    assert nearest_indices(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), codebook).tolist() == [0, 40]


@pytest.mark.parametrize("N, D, K", [(1, 65, 513), (9, 3, 700), (300, 768, 700), (5, 1, 40), (41, 9, 3000)])
def test_of_equal_codes_in_several_tiles_the_first_is_taken(N, D, K):
    """Tiles of another size once scored a copy a rounding higher than the original: a product of 2 rows is computed in
    another order than one of 512. Since then all tiles have one size."""
    codebook = draw(K, D).repeat(3, 1)[:-1]
    assert nearest_indices(draw(N, D, seed=1), codebook).amax() < K


def test_no_vectors_have_no_codes():
    found = nearest_indices(torch.empty(0, 4), draw(8, 4))
    assert found.shape == (0,) and found.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_searched_as_the_fp32_numbers_they_are(dtype):
    vectors, codebook = draw(100, 5).to(dtype), draw(CODES + 9, 5, seed=1).to(dtype)
    assert torch.equal(nearest_indices(vectors, codebook), nearest_indices(vectors.float(), codebook.float()))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_search_is_in_fp32_whatever_products_are_set_to(precision):
    """On a CPU that can, `medium` computes fp32 products in bf16, and one code in ten changes."""
    vectors, codebook = draw(500, 64), draw(CODES, 64, seed=1)
    expected = nearest_indices(vectors, codebook)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest_indices(vectors, codebook)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("K", [CODES, MANY_TILES * CODES])
@pytest.mark.parametrize("search", [nearest_indices, lambda v, e: nearest_places(v.T[None], e)[0]])
def test_the_search_is_in_fp32_under_autocast_however_many_codes_there_are(K, search):
    """With many the best tile is searched a second time."""
    vectors, codebook = draw(300, 8), draw(K, 8, seed=1)
    expected = search(vectors, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(search(vectors, codebook), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_has_some_code_and_leaves_the_others_theirs(value):
    vectors, codebook = draw(10, 4), draw(2 * CODES + 3, 4, seed=1)
    broken = vectors.clone()
    broken[3] = value
    broken[5, 1] = value
    found = nearest_indices(broken, codebook)
    whole = torch.tensor([i for i in range(10) if i not in (3, 5)])
    assert torch.equal(found[whole], nearest_indices(vectors, codebook)[whole])
    assert found.amin() >= 0 and found.amax() < len(codebook)


def test_vectors_may_lie_in_memory_as_they_like():
    vectors, codebook = draw(5, 100), draw(30, 10, seed=1)
    assert torch.equal(
        nearest_indices(vectors.T, codebook[:, ::2]),
        nearest_indices(vectors.T.contiguous(), codebook[:, ::2].contiguous()),
    )


@pytest.mark.parametrize("shape", [(3, 5, 63), (1, 5, 50 * VECTORS // 40), (2 * VECTORS, 2, 1), (0, 5, 4), (50, 2, 56)])
def test_a_grid_s_codes_are_those_of_its_places_one_by_one(shape):
    z_e, codebook = draw(*shape), draw(CODES + 3, shape[1], seed=1)
    places = nearest_indices(z_e.permute(0, 2, 1).reshape(-1, shape[1]), codebook)
    assert torch.equal(nearest_places(z_e, codebook).flatten(), places)


# --------------------------------------------------------------------------------------------------- the fused kernel


def test_a_kernel_that_finds_other_codes_is_found_out():
    def forgets_the_last_codes(vectors, codebook):
        return nearest_indices(vectors, codebook[:-53])

    device = torch.device("cpu")
    assert disagreement(nearest_indices, 8, device) is None
    assert "are not the nearest" in disagreement(forgets_the_last_codes, 8, device)
    assert "no codes" in disagreement(lambda vectors, codebook: nearest_indices(vectors, codebook) - 1333, 8, device)


INTERPRETED = """
import sys
import torch
sys.path.insert(0, "tests")  # not as tests.test_nearest: torch-fidelity brings a package of that name
from test_nearest import assert_nearest, draw
from smalti.tokenizer.nearest_triton import nearest_fused

for N, D, K in ((5, 3, 1), (70, 5, 300), (65, 40, 130), (0, 4, 9)):  # sizes beside those of the blocks
    vectors, codebook = draw(N, D), draw(K, D, seed=1)
    found = nearest_fused(vectors, codebook)
    assert found.dtype == torch.int64 and found.shape == (N,)
    assert_nearest(found, vectors, codebook)
    halves = nearest_fused(vectors.half().T.contiguous().T, codebook.bfloat16())
    assert torch.equal(halves, nearest_fused(vectors.half().float(), codebook.bfloat16().float()))
    assert_nearest(nearest_fused(vectors + 1024, codebook + 1024), (vectors + 1024) - 1024, (codebook + 1024) - 1024)

copies = draw(150, 4).repeat(3, 1)
assert nearest_fused(draw(70, 4, seed=1), copies).amax() < 150, "of equal codes not the first"

broken = draw(3, 4)
broken[1] = torch.nan
found = nearest_fused(broken, copies)
assert found.amin() >= 0 and found.amax() < 450, "a NaN is no code"
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no triton for this machine")
def test_the_fused_kernel_finds_the_nearest_codes_in_triton_s_interpreter():
    """It runs in its own process, because triton reads TRITON_INTERPRET at its first import."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no triton for this machine")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("D", [8, 256])
def test_the_fused_kernel_compiles_for_a_gpu_that_is_not_here_and_fits_its_memory(capability, D):
    """An unrolled loop over d asked for 268 KiB of shared memory at d = 256, more than any GPU has."""
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from smalti.tokenizer.nearest_triton import KEPT, LANES, ROWS, block_dims, search_kernel

    pointers = {"vectors": "*fp32", "codebook": "*fp32", "offsets": "*fp32", "candidates": "*i32"}
    numbers = ("N", "K", "share", "vector_row", "vector_dim", "code_row", "code_dim")
    sizes = {"D": D, "DIMS": block_dims(D), "ROWS": ROWS, "LANES": LANES, "KEPT": KEPT}
    signature = pointers | dict.fromkeys(numbers, "i32") | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(fn=search_kernel, signature=signature, constexprs=sizes)
    compiled = compile_for(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8, "num_stages": 2})
    assert compiled.metadata.shared <= 99 * 1024  # the limit of the smallest of these generations for one program


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("N, D, K", [(1, 1, 1), (700, 3, 17), (5000, 64, 3000), (300, 256, 16384)])
def test_on_a_gpu_the_codes_are_those_of_a_cpu(N, D, K):
    vectors, codebook = draw(N, D), draw(K, D, seed=1)
    on_gpu = nearest_indices(vectors.cuda(), codebook.cuda()).cpu()
    assert (
        on_gpu != nearest_indices(vectors, codebook)
    ).double().mean() <= 0.005  # TF32 may miss near ties, one in thousands
