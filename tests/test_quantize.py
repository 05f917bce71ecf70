"""The quantizers: what the paper's equation says, one property at a time."""

import pytest
import torch
import torch.nn.functional as F

from tokenizer.config import EMAVQConfig, TokenizerConfig, VQConfig
from tokenizer.kmeans import kmeans, m_step
from tokenizer.model import Tokenizer
from tokenizer.nearest import nearest
from tokenizer.quantize import build_quantizer, perplexity, usage

KINDS = [
    VQConfig(codebook_size=8, code_dim=4, normalize=False),
    VQConfig(codebook_size=8, code_dim=4),
    EMAVQConfig(codebook_size=8, code_dim=4),
]


@pytest.fixture(params=KINDS, ids=["plain", "normalized", "ema"])
def quantizer(request):
    torch.manual_seed(0)
    return build_quantizer(request.param)


@pytest.fixture
def z_e():
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_the_decoder_gradient_reaches_the_encoder_unchanged(quantizer, z_e):
    """Straight-through: dL/dz_e is dL/dz_q, where z_e is what was quantized (after the normalisation, when there is one)."""
    gradient = torch.randn(2, 4, 3, 5)
    quantized = quantizer(z_e)
    (arrived,) = torch.autograd.grad(quantized.z_q, quantized.z_e, gradient)
    torch.testing.assert_close(arrived, gradient)


def test_z_q_is_the_nearest_codebook_vector(quantizer, z_e):
    quantized = quantizer(z_e)
    torch.testing.assert_close(quantized.z_q, quantizer.lookup(quantized.indices))
    flat = quantized.z_e.permute(0, 2, 3, 1).reshape(-1, 4)
    expected = torch.cdist(flat, quantizer.vectors).argmin(1).view(2, 3, 5)
    assert torch.equal(quantized.indices, expected)


def test_every_codebook_vector_quantizes_to_itself(quantizer):
    indices = torch.arange(8).view(2, 2, 2)
    quantized = quantizer(quantizer.lookup(indices))
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(quantized.commitment_loss, torch.tensor(0.0), atol=1e-12, rtol=0)


def test_each_loss_moves_one_side_only(z_e):
    quantizer = build_quantizer(KINDS[0])
    quantized = quantizer(z_e)
    (to_encoder,) = torch.autograd.grad(quantized.codebook_loss, z_e, allow_unused=True, retain_graph=True)
    (to_codebook,) = torch.autograd.grad(quantized.commitment_loss, quantizer.codebook, allow_unused=True)
    assert to_encoder is None and to_codebook is None


def test_the_losses_are_the_papers(z_e):
    quantizer = build_quantizer(KINDS[0])
    quantized = quantizer(z_e)
    squared = F.mse_loss(z_e, quantizer.lookup(quantized.indices))
    torch.testing.assert_close(quantized.codebook_loss, squared)
    torch.testing.assert_close(quantized.commitment_loss, squared)


def test_an_ema_codebook_has_no_gradient_and_no_codebook_loss(z_e):
    quantizer = build_quantizer(KINDS[2])
    assert not list(quantizer.parameters()) and not quantizer(z_e).codebook_loss.requires_grad


def test_distances_are_in_fp32_under_autocast(quantizer, z_e):
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(z_e)
    assert torch.equal(quantized.indices, quantizer(z_e).indices)
    assert {quantized.z_q.dtype, quantized.codebook_loss.dtype, quantized.commitment_loss.dtype} == {torch.float32}


@pytest.mark.parametrize("N, D, K", [(1, 1, 2), (700, 3, 17), (5000, 8, 1000), (3, 5, 16)])
def test_the_tiled_search_is_the_plain_search(N, D, K):
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(N, D, generator=generator), torch.randn(K, D, generator=generator)
    distances = (vectors.double()[:, None] - codebook.double()).square().sum(2)
    found = nearest(vectors, codebook)
    # Where fp32 rounding could decide, any code as near as the nearest to 1e-5 is right.
    reached = distances.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(reached, distances.amin(1), atol=1e-5, rtol=1e-5)


def test_of_equally_near_codes_the_first_is_taken():
    codebook = torch.tensor([[1.0, 0.0]] * 40 + [[0.0, 1.0]] * 40)
    assert nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), codebook).tolist() == [0, 40]


def test_no_vectors_have_no_codes():
    assert nearest(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)


def test_an_empty_batch_has_an_empty_grid(quantizer):
    assert quantizer.nearest(torch.empty(0, 4, 3, 5)).shape == (0, 3, 5)


def test_perplexity_is_1_when_collapsed_and_K_when_uniform():
    assert perplexity(torch.tensor([16, 0, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([4, 4, 4, 4])) == pytest.approx(4)
    assert usage(torch.tensor([16, 1, 0, 0])) == 0.5


def test_kmeans_never_raises_its_objective_and_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = centres.repeat_interleave(50, 0) + torch.randn(150, 2, generator=generator)

    def objective(means: torch.Tensor) -> float:
        return torch.cdist(vectors, means).amin(1).square().mean().item()

    means = vectors[:3].clone()
    values = [objective(means)]
    for _ in range(10):
        means = m_step(vectors, nearest(vectors, means), means)
        values.append(objective(means))
    assert values == sorted(values, reverse=True)
    found = kmeans(vectors, 3, iterations=5, generator=generator)
    assert torch.cdist(centres, found).amin(1).max() < 1


def test_kmeans_refuses_more_means_than_vectors():
    with pytest.raises(ValueError, match="4 means need at least as many vectors to start from, got 3"):
        kmeans(torch.randn(3, 2), 4, iterations=1, generator=torch.Generator())


@pytest.mark.parametrize(
    "size, channels, patch, attention",
    [((16, 16), 1, 1, False), ((8, 24), 3, 2, True), ((12, 4), 4, 1, False)],
)
def test_images_become_a_grid_of_indices_and_images_again(size, channels, patch, attention):
    config = TokenizerConfig(
        image_size=size, image_channels=channels, patch=patch, channels=(8, 16), attention=attention, quantizer=KINDS[1]
    )
    tokenizer = Tokenizer(config).eval()
    images = torch.rand(2, channels, *size) * 2 - 1
    indices = tokenizer.encode(images)
    assert indices.shape == (2, *config.grid) and indices.dtype == torch.int64
    decoded = tokenizer.decode(indices)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_what_a_tokenizer_cannot_take_is_refused_with_what_it_can():
    tokenizer = Tokenizer(TokenizerConfig(image_size=(8, 8), channels=(8,), quantizer=KINDS[1]))
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        tokenizer.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 8\), got 0 to 8"):
        tokenizer.decode(torch.tensor([[[0, 8]]]))
