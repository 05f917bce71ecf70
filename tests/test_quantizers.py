"""The quantizers: the equations of their papers, one property a test."""

import math

import pytest
import torch
import torch.nn.functional as F

from smalti.common.layout import Grid, Layout
from smalti.common.mixed_radix import to_digits, to_index
from smalti.tokenizer.bottleneck.base import build_quantizer
from smalti.tokenizer.bottleneck.config import (
    EMAVQConfig,
    FSQConfig,
    GumbelConfig,
    LFQConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
)
from smalti.tokenizer.bottleneck.estimators import straight_through
from smalti.tokenizer.bottleneck.losses import codebook_and_commitment
from smalti.tokenizer.codebooks.usage import count, entropy_bits, perplexity, reachable, usage
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

SIZES = {"codebook_size": 9, "code_dim": 3}
TABLES = {
    "vq": VQConfig(**SIZES),
    "vq, not normalized": VQConfig(**SIZES, normalize=False),
    "vq, rotation": VQConfig(**SIZES, gradient="rotation"),
    "vq_ema": EMAVQConfig(**SIZES),
    "simvq": SimVQConfig(**SIZES),
    "gumbel": GumbelConfig(**SIZES),
}
IMPLICIT = {"fsq": FSQConfig(levels=(5, 4, 3)), "lfq": LFQConfig(bits=3)}
STACKED = {
    "residual": ResidualConfig(code_depth=4, each=VQConfig(**SIZES)),
    "residual vq_ema": ResidualConfig(code_depth=2, each=EMAVQConfig(**SIZES, normalize=False)),
    "residual simvq": ResidualConfig(code_depth=2, each=SimVQConfig(**SIZES)),
    "residual gumbel": ResidualConfig(code_depth=2, each=GumbelConfig(**SIZES)),
    "residual fsq": ResidualConfig(code_depth=2, each=FSQConfig(levels=(5, 4, 3))),
    "residual lfq": ResidualConfig(code_depth=3, each=LFQConfig(bits=3)),
}
ALL = TABLES | IMPLICIT | STACKED


def built(config):
    """Return a quantizer of 3 channels, its codebook fitted to normal vectors."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    vectors = quantizer.prepare(torch.randn(400, 3, 1)).flatten(1).detach()
    quantizer.initialize(vectors, torch.Generator().manual_seed(0))
    return quantizer


@pytest.fixture(params=ALL.values(), ids=ALL)
def quantizer(request):
    return built(request.param)


@pytest.fixture
def z_e():
    return torch.randn(2, 3, 15, generator=torch.Generator().manual_seed(1)).requires_grad_()


# ------------------------------------------------------------------------------------------------- every quantizer


def test_z_q_is_what_the_indices_look_up(quantizer, z_e):
    quantized = quantizer(z_e)
    # fp32 rounding
    torch.testing.assert_close(quantized.z_q, quantizer.lookup(quantized.indices), atol=1e-5, rtol=1e-5)


def test_settings_say_what_a_quantizer_asks_of_the_encoder_and_whether_codes_are_revived(quantizer, z_e):
    c = quantizer.config
    assert c.commits == bool(quantizer.train()(z_e).commitment_loss > 0) and c.revives == bool(quantizer.tables())


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (
            IMPLICIT["fsq"],
            {"commitment_weight": 3},
            "commitment_weight is of a commitment loss, and model.quantizer.ki",
        ),
        (TABLES["gumbel"], {"commitment_weight": 3}, "and model.quantizer.kind gumbel has none; leave it away"),
        (
            IMPLICIT["fsq"],
            {"revive_below": 0.5},
            "revive_below is of a codebook, and model.quantizer.kind fsq has none",
        ),
        (
            IMPLICIT["lfq"],
            {"revive_below": 0.5},
            "revive_below is of a codebook, and model.quantizer.kind lfq has none",
        ),
        (STACKED["residual lfq"], {"revive_below": 0.5}, "model.quantizer.each.kind lfq has none"),
        (TABLES["vq"], {"replace_by": "any"}, "replace_by any says by what replace_codes replaces"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(config, given, message):
    """Each was taken, and changed nothing."""
    with pytest.raises(ValueError, match=message):
        TrainConfig(model=VQVAEConfig(quantizer=config), **given)


def test_indices_are_a_grid_of_values_below_K(quantizer, z_e):
    c = quantizer.config
    indices = quantizer(z_e).indices
    assert indices.shape == ((2, 15, c.depth) if c.depth > 1 else (2, 15)) and indices.dtype == torch.int64
    assert indices.min() >= 0 and indices.max() < c.size


@pytest.mark.parametrize("config", (TABLES | IMPLICIT).values(), ids=TABLES | IMPLICIT)
def test_every_code_quantizes_to_itself(config):
    quantizer = built(config).eval()
    indices = torch.arange(config.size).view(1, -1)
    assert torch.equal(quantizer.quantize(quantizer.lookup(indices)).indices, indices)


def test_the_decoders_gradient_reaches_the_encoder(quantizer, z_e):
    (arrived,) = torch.autograd.grad(quantizer(z_e).z_q.square().sum(), z_e)
    assert arrived.isfinite().all() and arrived.abs().sum() > 0


@pytest.mark.parametrize(
    "name", ["vq", "vq, not normalized", "vq_ema", "simvq", "fsq", "lfq", "residual", "residual fsq"]
)
def test_straight_through_hands_the_gradient_on_unchanged(name, z_e):
    """dL/dz_e equals dL/dz_q at the vector that was quantized (after the normalisation or bound); in a stack once, not
    Q times."""
    quantized = built(ALL[name])(z_e)
    gradient = torch.randn(2, 3, 15)
    (arrived,) = torch.autograd.grad(quantized.z_q, quantized.z_e, gradient)
    torch.testing.assert_close(arrived, gradient)


def test_losses_and_codes_are_fp32_under_autocast(quantizer, z_e):
    quantizer.eval()  # in training gumbel draws
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(z_e)
    assert torch.equal(quantized.indices, quantizer(z_e).indices)
    losses = (quantized.codebook_loss, quantized.commitment_loss, quantized.regularizer)
    assert {quantized.z_q.dtype, *(loss.dtype for loss in losses)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_quantized_in_fp32(quantizer, z_e, dtype):
    quantizer.eval()
    assert torch.equal(quantizer(z_e.to(dtype)).indices, quantizer(z_e.to(dtype).float()).indices)


def test_an_empty_batch_has_an_empty_grid(quantizer):
    indices = quantizer(torch.empty(0, 3, 15)).indices
    assert indices.shape[:2] == (0, 15)


def test_a_quantizer_on_the_disk_is_the_same_quantizer(quantizer, z_e):
    again = build_quantizer(quantizer.config)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.eval()(z_e).indices, quantizer.eval()(z_e).indices)


# -------------------------------------------------------------------------------------------------------- vq and kin


@pytest.mark.parametrize("config", TABLES.values(), ids=TABLES)
def test_the_code_is_the_nearest_vector(config, z_e):
    quantizer = built(config).eval()
    quantized = quantizer(z_e)
    flat = quantized.z_e.permute(0, 2, 1).reshape(-1, 3)
    expected = torch.cdist(flat, quantizer.vectors).argmin(1).view(2, 15)
    assert torch.equal(quantized.indices, expected)


@pytest.mark.parametrize("config", TABLES.values(), ids=TABLES)
def test_normalized_codes_are_on_the_unit_sphere(config, z_e):
    quantizer = built(config)
    on_sphere = quantizer.vectors.norm(dim=1)
    if config.normalize:
        torch.testing.assert_close(on_sphere, torch.ones(9))
        torch.testing.assert_close(quantizer(z_e).z_e.norm(dim=1), torch.ones(2, 15))
    else:
        assert not torch.allclose(on_sphere, torch.ones(9), atol=0.01)


@pytest.mark.parametrize("name", ["vq, not normalized", "simvq"])
def test_each_loss_moves_one_side_only(name, z_e):
    quantizer = built(TABLES[name])
    quantized = quantizer(z_e)
    (to_encoder,) = torch.autograd.grad(quantized.codebook_loss, z_e, retain_graph=True)
    to_codes = torch.autograd.grad(quantized.commitment_loss, list(quantizer.parameters()))
    assert not to_encoder.any() and not any(gradient.any() for gradient in to_codes)


def test_the_losses_are_the_papers(z_e):
    quantizer = built(TABLES["vq, not normalized"])
    quantized = quantizer(z_e)
    squared = F.mse_loss(z_e, quantizer.lookup(quantized.indices))
    torch.testing.assert_close(quantized.codebook_loss, squared)
    torch.testing.assert_close(quantized.commitment_loss, squared)


def test_both_losses_have_the_gradients_of_their_definition():
    z_e, e = (torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = torch.autograd.grad(
        torch.stack(codebook_and_commitment(z_e, e)) @ torch.tensor([2.0, 3.0]).double(), (z_e, e)
    )
    defined = 2 * F.mse_loss(e, z_e.detach()) + 3 * F.mse_loss(z_e, e.detach())
    for a, b in zip(found, torch.autograd.grad(defined, (z_e, e)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_codebook_loss_is_a_step_of_k_means(z_e):
    """Its gradient is n_k (e_k − mean of the z_e that chose k), up to the scale: it vanishes at K-means' M step."""
    quantizer = built(TABLES["vq, not normalized"])
    quantized = quantizer(z_e)
    (gradient,) = torch.autograd.grad(quantized.codebook_loss, quantizer.codebook)
    flat, indices = z_e.detach().permute(0, 2, 1).reshape(-1, 3), quantized.indices.flatten()
    for k in indices.unique():
        given = flat[indices == k]
        expected = 2 * len(given) * (quantizer.codebook[k] - given.mean(0)) / flat.numel()
        torch.testing.assert_close(gradient[k], expected)


def test_an_ema_codebook_has_no_gradient_and_no_codebook_loss(z_e):
    quantizer = built(TABLES["vq_ema"])
    assert not list(quantizer.parameters()) and not quantizer(z_e).codebook_loss.requires_grad


def test_every_simvq_code_moves_with_a_step_that_chose_few():
    """Codes that are not chosen get no gradient, so a plain codebook collapses. Here all codes share the map."""
    quantizer = built(TABLES["simvq"])
    before = quantizer.vectors.detach().clone()
    quantized = quantizer(quantizer.lookup(torch.zeros(1, 1, dtype=torch.int64)) + 0.1 * torch.randn(1, 3, 1))
    quantized.codebook_loss.backward()
    with torch.no_grad():
        quantizer.map -= 0.1 * quantizer.map.grad
    assert quantized.indices.unique().numel() == 1
    assert ((quantizer.vectors - before).abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", ["vq", "simvq", "gumbel", "vq_ema"])
def test_a_placed_code_is_where_it_was_put(name):
    quantizer = built(TABLES[name])
    if name == "simvq":
        quantizer.map.data = torch.randn(3, 3)
    vectors = F.normalize(torch.randn(2, 3), dim=1)
    quantizer.place(torch.tensor([1, 4]), vectors)
    torch.testing.assert_close(quantizer.vectors[[1, 4]].detach(), vectors, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- gumbel


def test_gumbel_draws_in_training_and_takes_the_nearest_in_evaluation(z_e):
    quantizer = built(GumbelConfig(**SIZES))
    drawn = [quantizer(z_e).indices for _ in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    assert torch.equal(quantizer.eval()(z_e).indices, quantizer.nearest(quantizer.prepare(z_e)))


def test_gumbel_softmax_reaches_every_code_and_the_regularizer_is_the_rate(z_e):
    """KL(q || uniform) = ln K − H(q), by enumeration of q."""
    quantizer = built(GumbelConfig(**SIZES, kl_weight=1.0))
    quantized = quantizer(z_e)
    log_q = quantizer.log_posterior(quantized.z_e)
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(30))
    entropy = torch.distributions.Categorical(logits=log_q).entropy().mean()
    torch.testing.assert_close(quantized.regularizer, math.log(9) - entropy)
    (gradient,) = torch.autograd.grad(quantized.z_q.square().sum(), quantizer.codebook)
    assert (gradient.abs().sum(1) > 0).all()


def test_the_temperature_is_a_function_of_the_step():
    quantizer = build_quantizer(GumbelConfig(**SIZES, temperature=2.0, final_temperature=0.5, annealed=0.5))
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        quantizer.anneal(progress)
        found.append(quantizer.temperature)
    assert found == pytest.approx([2.0, 1.0, 0.5, 0.5])


# ----------------------------------------------------------------------------------------------------------- fsq, lfq


@pytest.mark.parametrize("levels", [(2,), (3, 2), (8, 5, 5)])
def test_fsq_reaches_every_level_and_rounds_to_the_nearest(levels):
    quantizer = build_quantizer(FSQConfig(levels=levels))
    z_e = torch.linspace(-6, 6, 4001)[None, None].expand(1, len(levels), 4001)
    bounded = quantizer.prepare(z_e)
    digits = to_digits(quantizer(z_e).indices, levels)[0]
    for i, L in enumerate(levels):
        grid = (torch.arange(L) - L // 2) / (L // 2)
        assert digits[:, i].unique().tolist() == list(range(L))
        nearest = (bounded[0, i][:, None] - grid).abs().argmin(1)
        torch.testing.assert_close(grid[digits[:, i]], grid[nearest])


def test_fsq_is_zero_at_zero():
    """An encoder that starts near 0 starts at the middle level, for even and odd numbers of levels."""
    quantizer = build_quantizer(FSQConfig(levels=(8, 5, 2)))
    torch.testing.assert_close(quantizer.prepare(torch.zeros(1, 3, 1)), torch.zeros(1, 3, 1), atol=1e-5, rtol=0)


def test_lfq_codes_are_the_signs():
    quantizer = build_quantizer(LFQConfig(bits=3))
    z_e = torch.tensor([[0.3, -2.0], [-0.1, -1.0], [5.0, 0.2]])[None]  # (1, 3, 2)
    quantized = quantizer(z_e)
    assert quantized.indices.tolist() == [[0b101, 0b001]]
    torch.testing.assert_close(quantized.z_q, torch.tensor([[1.0, -1], [-1.0, -1], [1.0, 1]])[None])


def test_lfq_entropies_are_those_of_the_softmax_over_all_codes():
    """They are computed bit by bit, and compared with the N x K softmax of −|z − c|² / temperature."""
    quantizer = build_quantizer(LFQConfig(bits=3, temperature=0.7))
    z_e = torch.randn(2, 3, 16)
    flat, codes = z_e.permute(0, 2, 1).reshape(-1, 3), quantizer.lookup(torch.arange(8).view(1, 8))[0].T
    p = (-torch.cdist(flat, codes).square() / 0.7).softmax(1)
    certain, spread = quantizer.entropies(z_e)
    torch.testing.assert_close(certain, torch.special.entr(p).sum(1).mean())
    torch.testing.assert_close(spread, torch.special.entr(p.mean(0)).sum())


def test_lfq_entropies_have_a_finite_gradient_where_all_bits_are_certain():
    """sigmoid(40) is 1 in fp32, and −p ln p has an infinite gradient at p = 0: training stopped at NaN in the first
    step."""
    z_e = torch.full((1, 3, 4), 10.0, requires_grad=True)
    certain, spread = build_quantizer(LFQConfig(bits=3)).entropies(z_e)
    (gradient,) = torch.autograd.grad(certain - spread, z_e)
    assert gradient.isfinite().all()


def test_lfq_bits_begin_balanced_whatever_the_untrained_encoder_says():
    """The mean and covariance of the encoder's first outputs, here far from 0 and nearly on a line, whiten them."""
    torch.manual_seed(0)
    quantizer = build_quantizer(LFQConfig(bits=3))
    line = torch.randn(4000, 1) * torch.tensor([5.0, 4.0, 3.0])
    quantizer.initialize(line + 0.01 * torch.randn(4000, 3) + 7, torch.Generator())
    z_e = (line + 0.01 * torch.randn(4000, 3) + 7)[:, :, None]
    counts = count(quantizer(z_e).indices, Layout.of(z_e.shape[2], factors=(8,)))
    assert perplexity(counts) > 7.5  # of 8 codes; before, all signs were 1


def test_lfq_entropies_need_no_table_of_all_codes():
    """A table of 2^24 codes would not fit; the spread is that of groups of bits, at most 24 ln 2."""
    quantizer = build_quantizer(LFQConfig(bits=24))
    certain, spread = quantizer.entropies(torch.randn(1, 24, 64))
    assert 0 < certain < spread <= 24 * math.log(2)


# ------------------------------------------------------------------------------------------------------------ residual


def test_a_deeper_stack_is_nearer(z_e):
    errors = []
    for depth in (2, 3, 4):
        quantized = built(ResidualConfig(code_depth=depth, each=VQConfig(**SIZES)))(z_e)
        errors.append(F.mse_loss(quantized.z_q, quantized.z_e).item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2


def test_each_depth_quantizes_what_the_ones_before_left(z_e):
    quantizer = built(STACKED["residual"])
    quantized = quantizer(z_e)
    left = quantized.z_e.detach()
    for q, depth in enumerate(quantizer.depths):
        assert torch.equal(depth.nearest(left), quantized.indices[..., q])
        left = left - depth.lookup(quantized.indices[..., q])


def test_the_commitment_of_a_stack_is_rq_vaes(z_e):
    """Lee et al. (2022), eq. 7: the sum over depths of |z_e − sg[e_0 + ... + e_q]|²."""
    quantizer = built(STACKED["residual"])
    quantized = quantizer(z_e)
    partial = torch.stack([d.lookup(quantized.indices[..., q]) for q, d in enumerate(quantizer.depths)]).cumsum(0)
    expected = sum(F.mse_loss(quantized.z_e, each.detach()) for each in partial)
    torch.testing.assert_close(quantized.commitment_loss, expected)


# ---------------------------------------------------------------------------------------------------- usage and digits


def test_perplexity_is_1_when_collapsed_and_K_when_uniform():
    assert perplexity(torch.tensor([16, 0, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([4, 4, 4, 4])) == pytest.approx(4)
    assert usage(torch.tensor([16, 1, 0, 0])) == 0.5


def test_use_is_counted_at_each_depth():
    indices = torch.tensor([[[[0, 2], [1, 2]]]])  # (1, 1, 2, Q = 2)
    layout = Layout.of(1, 2, depth=2, factors=(3,))
    counts = count(indices.flatten(1), layout)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 2]]
    assert (
        usage(counts) == 0.5 and perplexity(counts) == pytest.approx(1.5) and entropy_bits(counts) == pytest.approx(0.5)
    )


def test_use_is_counted_at_each_grid_and_each_counts_for_as_many_codes_as_it_has():
    layout = Layout(grids=(Grid(shape=(1, 1), factors=(2,)), Grid(shape=(1, 3), factors=(2,))))
    counts = count(torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0]]), layout)
    assert counts.tolist() == [[2, 0], [3, 3]] and entropy_bits(counts) == pytest.approx(6 / 8)


def test_a_grid_of_few_places_is_held_against_as_many_codes_as_it_gives():
    """100 images give 100 codes of a grid of one place, however many codes the finer grid gives."""
    counts = torch.zeros(2, 512)
    counts[0, :100], counts[1] = 1, 100
    assert reachable(counts[:1]) == pytest.approx(0.18, abs=0.01)
    assert reachable(counts) == pytest.approx((0.18 + 1) / 2, abs=0.01)


def test_fewer_codes_than_values_cannot_use_them_all():
    """100 codes drawn evenly from 512 values use 18% of them."""
    counts = torch.zeros(1, 512)
    counts[0, :100] = 1
    assert reachable(counts) == pytest.approx(0.18, abs=0.01)


@pytest.mark.parametrize("factors", [(7,), (8, 5, 5), (2,) * 10])
def test_digits_of_an_index_are_the_index_again(factors):
    index = torch.arange(math.prod(factors))
    digits = to_digits(index, factors)
    assert torch.equal(to_index(digits, factors), index)
    assert (digits.amax(0) == torch.tensor(factors) - 1).all()


# ------------------------------------------------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize(
    "size, channels, patch, attention",
    [((16, 16), 1, 1, False), ((8, 24), 3, 2, True), ((12, 4), 4, 1, False)],
)
def test_images_become_codes_and_images_again(size, channels, patch, attention):
    config = VQVAEConfig(
        image_size=size,
        image_channels=channels,
        patch=patch,
        channels=(8, 16),
        attention=attention,
        quantizer=TABLES["vq"],
    )
    tokenizer = VQVAE(config).eval()
    images = torch.rand(2, channels, *size) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.shape == (2, config.layout.length) and codes.dtype == torch.int64
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_every_quantizer_fits_between_encoder_and_decoder(config):
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8,), quantizer=config)).eval()
    codes = tokenizer.encode(torch.zeros(2, 1, 8, 8))
    assert codes.shape == (2, tokenizer.config.layout.length) and tokenizer.decode(codes).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tokenizer_of_half_precision_encodes_and_decodes(config, dtype):
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8,), quantizer=config)).eval().to(dtype)
    indices = tokenizer.encode(torch.zeros(2, 1, 8, 8, dtype=dtype))
    assert tokenizer.decode(indices).dtype == torch.float32


def test_what_a_tokenizer_cannot_take_is_refused_with_what_it_can():
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8,), quantizer=TABLES["vq"]))
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        tokenizer.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 9\), got 0 to 9"):
        tokenizer.decode(torch.arange(64).remainder(10)[None])
    deep = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8,), quantizer=STACKED["residual"]))
    with pytest.raises(
        ValueError, match=r"codes must be integers \(B, 256\), 8 x 8 x 4 codes of 9; got torch.int64 \(1, 64\)"
    ):
        deep.decode(torch.zeros(1, 64, dtype=torch.int64))


def test_straight_through_is_e_forward_and_the_identity_backward():
    z_e, e = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2)
    z_q = straight_through(z_e, e)
    torch.testing.assert_close(z_q, e)
    z_q.sum().backward()
    assert torch.equal(z_e.grad, torch.ones_like(z_e))


def test_the_peer_of_the_benchmark_is_evaluated_as_ours_are(tmp_path, accelerator):
    """It had only `encode` and `decode` when the evaluation began to ask for a likelihood."""
    pytest.importorskip("vector_quantize_pytorch")
    from PIL import Image

    from benchmarks.quantizers import PEERS, fit_peer
    from smalti.common.data.config import ImagesConfig
    from smalti.common.data.images import open_images
    from smalti.tokenizer.split_evaluation import evaluate_split

    for number in range(640):
        path = tmp_path / f"{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        noise = torch.randint(0, 256, (28, 28), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path)
    images = open_images(ImagesConfig(source=str(tmp_path), validation_share=0.1), (28, 28), 1)
    for name in PEERS:
        peer = fit_peer("fashion_mnist", name, images, 0, 2, accelerator).eval()
        found = evaluate_split(peer, images.splits["validation"], accelerator)
        assert found.psnr > 3 and int(found.counts.sum()) == 49 * found.images
