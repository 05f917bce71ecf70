"""The multi-scale tokenizer: codes on grids from coarse to fine, each of what those before left.

Tian et al. (2024, VAR), https://arxiv.org/abs/2404.02905, algorithms 1 and 2.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from smalti.common import codes
from smalti.common.data.config import ImagesConfig
from smalti.common.ema import EMA
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.metrics.features_config import FeaturesConfig
from smalti.tokenizer.base import DecodesCoarse, EmbedsCodes
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
from smalti.tokenizer.codebook import Settings as CodebookSettings
from smalti.tokenizer.codebook import examine, summary_lines
from smalti.tokenizer.codebooks.health import advice, codebook_of
from smalti.tokenizer.codebooks.initialization import check_enough
from smalti.tokenizer.codebooks.upkeep import REVIVE_EVERY, CodebookUpkeep, TableUpkeep
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as EvaluateSettings
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.model import build_tokenizer, load_tokenizer
from smalti.tokenizer.multiscale.config import MultiscaleConfig, usual_scales
from smalti.tokenizer.multiscale.initialization import start_each, start_together, stretch_to_what_is_left
from smalti.tokenizer.multiscale.model import MultiscaleTokenizer
from smalti.tokenizer.multiscale.quantizer import MultiscaleQuantizer
from smalti.tokenizer.train import train
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests.conftest import tokenizer_training

GRIDS = ((1, 1), (2, 1), (3, 2), (6, 4))
CODES = sum(h * w for h, w in GRIDS)
SIZES = {"codebook_size": 9, "code_dim": 3}
KINDS = {
    "vq": VQConfig(**SIZES),
    "vq, not normalized": VQConfig(**SIZES, normalize=False),
    "vq, rotation": VQConfig(**SIZES, gradient="rotation"),
    "vq_ema": EMAVQConfig(**SIZES),
    "simvq": SimVQConfig(**SIZES),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "lfq": LFQConfig(bits=3),
}
PLAIN = KINDS["vq, not normalized"]


def outputs(images=300):
    """Return encoder outputs (N, 3, 6, 4) whose places are alike, as those of an image are."""
    noise = torch.randn(images, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    coarse = torch.randn(images, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    return 0.5 * noise + F.interpolate(coarse, size=(6, 4), mode="bilinear")


def built(config, *, shared=False, grids=GRIDS):
    """Return a quantizer started from `outputs`, its convolutions drawn at random after that."""
    torch.manual_seed(0)
    quantizer = MultiscaleQuantizer(config, grids, shared=shared)
    draws = torch.Generator().manual_seed(0)
    if not quantizer.tables():
        stretch_to_what_is_left(quantizer, outputs(), draws)
    elif shared:
        start_together(quantizer, outputs(), config.size, draws)
    else:
        start_each(quantizer, outputs(), config.size, draws)
    for phi in quantizer.phis:
        torch.nn.init.normal_(phi.weight, std=0.1)
        torch.nn.init.normal_(phi.bias, std=0.1)
    return quantizer.eval()


@pytest.fixture(params=[(name, shared) for name in KINDS for shared in (False, True)], ids=str)
def quantizer(request):
    name, shared = request.param
    return built(KINDS[name], shared=shared)


@pytest.fixture
def z_e():
    return outputs(5).flatten(2).requires_grad_()


def model(**settings):
    """Return a tokenizer of 8 x 8 pixels and scales 1, 2 and 4, with random weights."""
    torch.manual_seed(0)
    chosen = {"image_size": (8, 8), "channels": (8, 16), "quantizer": VQConfig(codebook_size=16, code_dim=4)}
    return MultiscaleTokenizer(MultiscaleConfig(**{**chosen, "scales": (1, 2, 4), **settings})).eval()


# ----------------------------------------------------------------------------------------------------------- equations


def test_z_q_is_what_the_codes_look_up(quantizer, z_e):
    quantized = quantizer(z_e)
    assert quantized.indices.shape == (5, CODES) and quantized.indices.dtype == torch.int64
    # fp32 sums in another order
    torch.testing.assert_close(quantized.z_q, quantizer.lookup(quantized.indices), atol=1e-5, rtol=1e-5)


def test_each_scale_quantizes_the_area_means_of_what_those_before_left(z_e):
    """Algorithm 1, written out."""
    quantizer = built(PLAIN)
    quantized = quantizer(z_e)
    f, f_hat, found = quantized.z_e.unflatten(2, (6, 4)), torch.zeros(5, 3, 6, 4), []
    for bottleneck, phi, grid in zip(quantizer.bottlenecks, quantizer.phis, GRIDS, strict=True):
        left = F.interpolate(f - f_hat, size=grid, mode="area").flatten(2)
        indices = torch.cdist(left.transpose(1, 2), bottleneck.codebook[None].expand(5, -1, -1)).argmin(2)
        e = F.embedding(indices, bottleneck.codebook).transpose(1, 2).unflatten(2, grid)
        e = F.interpolate(e, size=(6, 4), mode="bilinear", align_corners=False)
        f_hat = f_hat + 0.5 * e + 0.5 * F.conv2d(e, phi.weight, phi.bias, padding=1)
        found.append(indices)
    assert torch.equal(quantized.indices, torch.cat(found, 1))
    torch.testing.assert_close(quantized.z_q, f_hat.flatten(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_codes_and_z_q_are_those_of_vector_quantize_pytorch_on_the_same_weights(shared, z_e):
    peers = pytest.importorskip("vector_quantize_pytorch.hierarchical_vq")
    ours = built(PLAIN, shared=shared)
    theirs = peers.HierarchicalVQ(
        dim=3,
        codebook_size=9,
        scales=GRIDS,
        shared_codebook=shared,
        share_quant_resi=0,
        kmeans_init=False,
        accept_image_fmap=True,
    ).eval()
    with torch.no_grad():
        for scale, phi in enumerate(ours.phis):
            theirs.get_vq(scale)._codebook.embed.copy_(ours.bottleneck(scale).codebook[None])
            theirs.phi_levels[scale].conv.load_state_dict(phi.state_dict())
        mine = ours(z_e)
        z_q, indices, _ = theirs(mine.z_e.unflatten(2, (6, 4)))  # theirs takes no mean away
    assert torch.equal(mine.indices, torch.cat([each.flatten(1) for each in indices], 1))
    torch.testing.assert_close(mine.z_q, z_q.flatten(2), atol=1e-5, rtol=1e-5)  # it adds up in another order


@pytest.mark.parametrize("config", [PLAIN, KINDS["vq_ema"].model_copy(update={"normalize": False})], ids=["vq", "ema"])
def test_one_scale_whose_phi_is_the_identity_is_the_vq_vae(config):
    """Phi begins as the identity and the mean for evaluation as 0; the names of the weights are the same but for the
    quantizer's."""
    sizes = {"image_size": (8, 8), "channels": (8, 16), "quantizer": config}
    torch.manual_seed(0)
    vqvae, ours = VQVAE(VQVAEConfig(**sizes)), MultiscaleTokenizer(MultiscaleConfig(**sizes, scales=(4,))).eval()
    weights = {name.replace("quantizer.", "quantizer.bottlenecks.0."): x for name, x in vqvae.state_dict().items()}
    assert not ours.load_state_dict(weights, strict=False).unexpected_keys
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    assert torch.equal(ours.encode(images), vqvae.encode(images))
    assert torch.equal(ours.decode(ours.encode(images)), vqvae.decode(vqvae.encode(images)))
    mine, theirs = ours(images), vqvae(images)
    for name in theirs.losses:
        torch.testing.assert_close(mine.losses[name], theirs.losses[name])


def test_straight_through_hands_the_gradient_on_unchanged(z_e):
    quantized = built(PLAIN)(z_e)
    gradient = torch.randn(5, 3, 24)
    (arrived,) = torch.autograd.grad(quantized.z_q, z_e, gradient)
    assert torch.equal(arrived, gradient)


def test_the_decoders_gradient_reaches_the_encoder(quantizer, z_e):
    (arrived,) = torch.autograd.grad(quantizer(z_e).z_q.square().sum(), z_e)
    assert arrived.isfinite().all() and arrived.abs().sum() > 0


def test_the_losses_are_means_over_what_the_scales_so_far_add_up_to(z_e):
    quantizer = built(PLAIN)
    quantized = quantizer(z_e)
    so_far = [quantizer.lookup_coarse(quantized.indices, scales) for scales in range(1, 5)]
    expected = torch.stack([F.mse_loss(f_hat, quantized.z_e) for f_hat in so_far]).mean()
    torch.testing.assert_close(quantized.codebook_loss, expected)
    torch.testing.assert_close(quantized.commitment_loss, expected)


@pytest.mark.parametrize("name", ["vq, not normalized", "simvq", "vq_ema", "lfq"])
def test_each_loss_moves_one_side_only(name, z_e):
    """The codebook loss moves vectors, where a gradient does, and phi; the commitment loss moves the encoder."""
    quantizer = built(KINDS[name])
    quantized, weights = quantizer(z_e), [weight for weight in quantizer.parameters() if weight.requires_grad]
    to_codes = torch.autograd.grad(quantized.codebook_loss, weights, retain_graph=True)
    assert all(gradient.any() for gradient in to_codes)
    assert not torch.autograd.grad(quantized.codebook_loss, z_e, retain_graph=True)[0].any()
    assert torch.autograd.grad(quantized.commitment_loss, z_e, retain_graph=True)[0].any()
    moved = torch.autograd.grad(quantized.commitment_loss, weights)
    assert not any(gradient.any() for gradient in moved)


def test_the_decoder_moves_no_code_and_no_phi(z_e):
    quantizer = built(PLAIN)
    weights = [weight for weight in quantizer.parameters() if weight.requires_grad]
    moved = torch.autograd.grad(quantizer(z_e).z_q.sum(), weights, allow_unused=True)
    assert all(gradient is None for gradient in moved)


def test_finer_scales_do_not_change_the_codes_of_coarser_ones(z_e):
    quantizer = built(PLAIN)
    before = quantizer(z_e).indices
    quantizer.bottlenecks[-1].codebook.data.neg_()
    after = quantizer(z_e).indices
    assert torch.equal(after[:, :-24], before[:, :-24]) and not torch.equal(after[:, -24:], before[:, -24:])


def test_losses_and_codes_are_fp32_under_autocast(quantizer, z_e):
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(z_e)
        looked_up = quantizer.lookup(quantized.indices)
    assert torch.equal(quantized.indices, quantizer(z_e).indices)
    assert torch.equal(looked_up, quantizer.lookup(quantized.indices))
    losses = (quantized.codebook_loss, quantized.commitment_loss, quantized.regularizer)
    assert {quantized.z_q.dtype, *(loss.dtype for loss in losses)} == {torch.float32}


def test_a_model_of_half_precision_encodes_and_decodes(z_e):
    tokenizer = model().bfloat16()
    found = tokenizer.encode(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16))
    assert tokenizer.decode(found).isfinite().all()


def test_an_empty_batch_has_no_codes(quantizer):
    assert quantizer(torch.empty(0, 3, 24)).indices.shape == (0, CODES)


# ---------------------------------------------------------------------------------------------------------- the layout


def test_codes_are_split_into_the_grids_and_joined_again():
    tokenizer = model(scales=(1, 2, 3, 4))
    layout = tokenizer.config.layout
    assert layout == Layout(grids=tuple(Grid(shape=(n, n), factors=(16,)) for n in (1, 2, 3, 4)))
    found = tokenizer.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
    parts = layout.split(found)
    assert [part.shape[1:] for part in parts] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert torch.equal(layout.join(parts), found)
    assert torch.equal(tokenizer.decode(layout.join(parts)), tokenizer.decode(found))


@pytest.mark.parametrize(
    ("height", "scales"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (4, (1, 2, 3, 4)),
        (7, (1, 2, 3, 5, 7)),
        (8, (1, 2, 3, 5, 8)),
        (16, (1, 2, 3, 5, 7, 11, 16)),
    ],
)
def test_scales_that_are_not_given_grow_by_half_from_one_to_the_grid(height, scales):
    assert usual_scales(height) == scales


def test_widths_are_in_proportion_and_at_least_one():
    c = MultiscaleConfig(image_size=(32, 8), channels=(8, 16, 16), scales=(1, 4, 8))
    assert c.grids == ((1, 1), (4, 1), (8, 2))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scales": (1, 2)}, r"scales must end with the height of the network's grid, 4 x 4 codes .* give 1, 2, 4"),
        ({"scales": (1, 2, 8)}, r"scales must end with the height of the network's grid, .* got 1, 2, 8; give 1, 2, 4"),
        ({"scales": (2, 1, 4)}, "scales must ascend, each larger than the one before, got 2, 1, 4"),
        ({"scales": (2, 2, 4)}, "scales must ascend"),
        ({"scales": tuple(range(1, 34))}, "scales: there may be 32 at most, got 33"),
        ({"scales": ()}, "scales"),
        ({"scales": (0, 4)}, "scales"),
        ({"quantizer": GumbelConfig()}, "quantizer.kind gumbel draws its codes"),
        ({"quantizer": ResidualConfig()}, "quantizer"),
    ],
)
def test_settings_that_make_no_scales_are_refused_by_name(settings, told):
    with pytest.raises(ValidationError, match=told):
        MultiscaleConfig(image_size=(8, 8), channels=(8, 16), **settings)


def test_several_grids_give_no_vectors_on_one_grid():
    """A prior over vectors draws one grid: `encode --vectors true` is refused, and a pipeline never asks."""
    assert not isinstance(model(), EmbedsCodes) and isinstance(model(), DecodesCoarse)


def test_coarse_scales_alone_make_a_picture_and_all_of_them_the_image():
    tokenizer = model()
    found = tokenizer.encode(torch.rand(2, 1, 8, 8) * 2 - 1)
    assert torch.equal(tokenizer.decode_coarse(found, 3), tokenizer.decode(found))
    other = found.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 16
    assert torch.equal(tokenizer.decode_coarse(found, 2), tokenizer.decode_coarse(other, 2))
    assert not torch.equal(tokenizer.decode_coarse(found, 1), tokenizer.decode_coarse(found, 2))


# -------------------------------------------------------------------------------------------------------- codes in use


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shared", [False, True])
def test_every_scale_uses_its_codes_from_the_start(name, shared):
    """The 300 images meet 9 to 60 codes a scale. Each scale uses nearly all of its own codebook, and all together
    one that they share."""
    torch.manual_seed(0)
    config = KINDS[name]
    quantizer = built(config, shared=shared)
    for phi in quantizer.phis:
        torch.nn.init.dirac_(phi.weight)
        torch.nn.init.zeros_(phi.bias)
    indices = quantizer(outputs().flatten(2)).indices
    parts = [indices] if shared else indices.split([h * w for h, w in GRIDS], 1)
    for part in parts:
        assert part.unique().numel() >= 0.9 * config.size


def test_in_training_a_shift_of_all_encoder_outputs_changes_no_code():
    """In the first steps the outputs of all images move together, by more than the means of images differ, and one
    code in five of a grid of one place was left in use."""
    quantizer = built(PLAIN).train()
    z_e = outputs(64).flatten(2)
    before = quantizer(z_e).indices
    after = quantizer(z_e + torch.tensor([3.0, -2.0, 1.0])[:, None]).indices
    assert (before == after).float().mean() > 0.99  # ties within rounding


def test_of_a_small_batch_the_mean_is_that_of_some_before_too():
    """The mean of a single image is all that a grid of one place could tell of it."""
    quantizer = built(PLAIN).train()
    quantizer.center(torch.zeros(1, 3, 24))
    quantizer.prepare(torch.ones(4, 3, 24))
    torch.testing.assert_close(quantizer.mean, torch.full((3,), 4 / 16))


def test_a_batch_that_is_not_finite_leaves_the_mean_as_it_is():
    """Its step is skipped, and NaN would stay in the mean for good."""
    quantizer = built(PLAIN).train()
    before = quantizer.mean.clone()
    quantizer.prepare(torch.full((2, 3, 24), torch.nan))
    assert torch.equal(quantizer.mean, before)


def test_the_averaged_model_has_the_mean_that_its_averaged_encoder_gives():
    """Outputs drift with the weights: a mean that is averaged otherwise lies where the averaged encoder's are not."""
    quantizer = built(PLAIN).train()
    ema, drifting, steps = EMA(quantizer, 0.99), torch.nn.Parameter(torch.zeros(3)), 300
    beside = EMA(torch.nn.ParameterList([drifting]), 0.99)
    for step in range(steps):
        drifting.data += 0.1
        quantizer.prepare(drifting[:, None].detach().expand(20, 3, 24))
        ema.update(quantizer, step)
        beside.update(torch.nn.ParameterList([drifting]), step)
    torch.testing.assert_close(ema.model.mean, beside.model[0].detach(), rtol=1e-2, atol=1e-2)


def test_a_file_of_before_with_two_means_is_read():
    quantizer = built(PLAIN)
    kept = quantizer.state_dict() | {"near_mean": torch.ones(3), "batches": torch.ones(())}
    quantizer.load_state_dict(kept)
    assert "near_mean" in kept, "and the given weights stay as they are"


def test_a_grid_of_one_place_adds_its_vectors_as_they_are():
    """Codes are searched near what is left. A trained φ moved them from there, and a tenth of the codes lay idle."""
    quantizer = MultiscaleQuantizer(PLAIN, GRIDS, shared=False)
    assert GRIDS[0] == (1, 1) and [phi.weight.requires_grad for phi in quantizer.phis] == [False, True, True, True]
    e = torch.randn(2, 3, 1)
    torch.testing.assert_close(quantizer.brought_up(0, e).flatten(2), e.expand(2, 3, 24))


def test_in_evaluation_an_image_has_the_same_codes_in_any_batch():
    quantizer, z_e = built(PLAIN), outputs(5).flatten(2) + 1
    together = quantizer(z_e).indices
    assert torch.equal(together[2:3], quantizer(z_e[2:3]).indices)
    quantizer.train()
    for _ in range(100):
        quantizer.prepare(z_e)
    torch.testing.assert_close(quantizer.mean, z_e.mean((0, 2)))


def test_the_scales_started_from_leave_less_than_those_of_encoder_outputs():
    """A start from the encoder's outputs themselves, as of one grid, is far from residuals, and codes lie idle."""
    plain = MultiscaleQuantizer(PLAIN, GRIDS, shared=False)
    plain.center(outputs().flatten(2))
    flat = plain.prepare(outputs().flatten(2)).transpose(1, 2).reshape(-1, 3)
    for bottleneck in plain.bottlenecks:
        bottleneck.initialize(flat, torch.Generator().manual_seed(0))
    started = MultiscaleQuantizer(PLAIN, GRIDS, shared=False)
    start_each(started, outputs(), 9, torch.Generator().manual_seed(0))
    found = [q(outputs().flatten(2)) for q in (plain, started)]
    error = [F.mse_loss(each.z_q, each.z_e) for each in found]
    assert error[1] < 0.8 * error[0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["vq", "vq_ema", "simvq"])
def test_a_dead_code_of_a_coarse_scale_is_revived(name, shared, accelerator):
    quantizer = built(KINDS[name], shared=shared)
    quantizer.bottleneck(0).place(torch.tensor([7]), torch.full((1, 3), 50.0))
    upkeep = CodebookUpkeep(quantizer.tables(), revive_below=0.05)
    assert len(upkeep.tables) == (1 if shared else 4)
    revived: list[int] = []
    for step in range(40 * REVIVE_EVERY):
        upkeep.observe(quantizer(outputs().flatten(2)))
        revived += upkeep.step(accelerator, step, revive=True)[0].tolist()
        if 7 in revived:
            break
    assert 7 in revived
    assert quantizer.bottleneck(0).vectors[7].abs().max() < 10


def test_one_table_of_all_scales_counts_the_codes_of_all(accelerator):
    quantizer = built(PLAIN, shared=True)
    upkeep = CodebookUpkeep(quantizer.tables(), revive_below=0.05)
    upkeep.observe(quantizer(outputs(5).flatten(2)))
    upkeep.step(accelerator, 0, revive=True)
    assert upkeep.tables[0].window.sum() == 5 * CODES


def test_no_two_dead_codes_are_put_at_one_vector(accelerator):
    """A scale of one place offers as many vectors as a batch has images: 4,096 draws of 4 put all dead codes at 4
    places, where one code of each lived and the others were dead again."""
    torch.manual_seed(0)
    quantizer = build_quantizer(VQConfig(codebook_size=64, code_dim=3, normalize=False))
    upkeep = TableUpkeep(quantizer, revive_below=0.05)
    z_e = torch.randn(4, 3, 1)
    upkeep.use.zero_()
    upkeep.observe(quantizer(z_e))
    revived = upkeep.step(accelerator, REVIVE_EVERY - 1, revive=True)
    assert len(revived) == 4 and quantizer.vectors[revived].unique(dim=0).shape == (4, 3)


def test_a_scale_of_too_few_vectors_is_refused_with_its_grid_and_what_to_do():
    layout = MultiscaleConfig(image_size=(8, 8), channels=(8, 16)).layout
    with pytest.raises(
        UserError, match=r"codebook_size 512 is more than the 300 x 1 x 1 = 300 vectors of the training"
    ):
        for grid in layout.grids:
            check_enough(512, 300, grid, "vectors")


def test_advice_on_an_idle_scale_is_to_leave_it_out():
    tokenizer = model()
    book = codebook_of(tokenizer, 0.05)
    counts = torch.full((3, 16), 50)
    counts[1] = torch.tensor([800] + [0] * 15)
    (said,) = advice(book, {"train": counts})
    assert said.startswith("idle codebook: the codes at grid 2 x 2 of 3 say next to nothing on train")
    assert "model.scales 1 4" in said
    counts[2], counts[1] = counts[1].clone(), 50
    (said,) = advice(book, {"train": counts})
    assert "one level more in model.channels" in said


def test_a_scale_is_counted_against_the_codes_that_it_can_reach():
    """Ten images have ten codes on a grid of one place: six others that they did not meet are not called dead."""
    book = codebook_of(model(), 0.05)
    counts = torch.full((3, 16), 50)
    counts[0] = (torch.arange(16) < 8).long()
    said = advice(book, {"train": counts})
    assert said[0].startswith("too few codes to judge by: 8 places of train for 16 codes at grid 1 x 1 of 3")
    assert not any("dead codes" in each for each in said)


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def run(tmp_path_factory, accelerator):
    """Return a run of twelve steps on the digits, encoded."""
    path = tmp_path_factory.mktemp("multiscale") / "digits"
    quantizer = VQConfig(codebook_size=16, code_dim=4)
    config = MultiscaleConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer)
    images = ImagesConfig(shift=1, validation_share=0.5)
    train(tokenizer_training(path, model=config, images=images, steps=12, evaluate_every=6), accelerator)
    encode(EncodeSettings(run=str(path), views=1, precision="fp32"), accelerator)
    return path


def test_training_keeps_the_codes_of_every_scale_in_use(run):
    histogram = json.loads((run / "tokenizer/histogram.json").read_text())
    used = (torch.tensor(histogram["counts"]) > 0).double().mean(1)
    assert used.shape == (4,) and used.min() > 0.8


def test_every_loss_term_is_logged_and_beta_multiplies_the_commitment_alone(run):
    lines = [json.loads(line) for line in (run / "tokenizer/metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if "loss" in line)
    expected = line["reconstruction_loss"] + line["codebook_loss"] + 0.25 * line["commitment_loss"]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


def test_codes_on_the_disk_are_those_of_the_saved_tokenizer(run):
    data, tokenizer = codes.load_codes(run / "codes"), load_tokenizer(run / "tokenizer/model")
    assert isinstance(tokenizer, MultiscaleTokenizer) and data.info.layout == tokenizer.config.layout
    assert [grid.shape for grid in data.info.layout.grids] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert data.splits["train"].codes.shape[1] == 1 + 4 + 9 + 16


def test_a_tokenizer_on_the_disk_is_the_same_tokenizer(tmp_path):
    for settings in ({}, {"shared": True}, {"quantizer": LFQConfig(bits=3)}):
        tokenizer = model(**settings)
        tokenizer.quantizer.stretch.uniform_(0.5, 2)
        tokenizer.save_pretrained(tmp_path / "model")
        again, images = load_tokenizer(tmp_path / "model"), torch.rand(3, 1, 8, 8)
        assert again.config == tokenizer.config
        assert torch.equal(again.encode(images), tokenizer.encode(images))


def test_evaluation_says_the_use_of_each_scale(run, accelerator):
    settings = EvaluateSettings(run=str(run), features=FeaturesConfig(kind="none"))
    figures = json.loads(evaluate(settings, accelerator).read_text())["figures"]
    assert len(figures["usage_by_codebook"]) == 4 and figures["psnr_pooled"] > 5
    assert figures["uniform_rate"] == pytest.approx(30 * 4 / 64)


def test_the_codebook_is_drawn_and_told_scale_by_scale(run, accelerator, drawn_figures):
    figures = examine(CodebookSettings(run=str(run), precision="fp32"), accelerator)
    printed = "\n".join(summary_lines(figures))
    assert "vq of 16 codes, 4 grids" in printed and "grid 1 x 1: used" in printed and "grid 4 x 4: used" in printed
    assert len(figures["nearest"]) == 4
    assert (run / "tokenizer/codebook.png").stat().st_size > 10_000


@pytest.mark.parametrize("shared", [False, True])
def test_a_codes_picture_is_of_the_pixels_that_its_place_covers(shared):
    tokenizer = model(shared=shared)
    counts = torch.ones(3, 16)
    shapes = [tuple(tokenizer.code_pictures(counts, scale, torch.arange(2)).shape) for scale in range(3)]
    assert shapes == [(2, 1, 8, 8), (2, 1, 4, 4), (2, 1, 2, 2)]
    assert len(tokenizer.code_tables()) == 3


def test_a_code_of_the_coarsest_scale_is_drawn_as_the_image_that_it_makes_amid_mean_codes():
    """If one code of each scale is in use, the picture of the coarsest is the image of those codes."""
    tokenizer = model()
    counts = torch.zeros(3, 16).index_fill(1, torch.tensor([5]), 9)
    drawn = tokenizer.code_pictures(counts, 0, torch.tensor([5]))
    torch.testing.assert_close(drawn, tokenizer.decode(torch.full((1, 21), 5)), atol=1e-5, rtol=1e-5)


def test_vectors_of_several_grids_are_refused_with_the_layout(run, accelerator, tmp_path):
    settings = EncodeSettings(run=str(run), output=str(tmp_path / "vectors"), vectors=True, precision="fp32")
    with pytest.raises(UserError, match=r"vectors true needs codes .* of one grid, .* kind multiscale \(1 x 1 codes"):
        encode(settings, accelerator)


def test_the_kind_is_chosen_by_its_name():
    config = MultiscaleConfig.model_validate_json('{"kind": "multiscale", "image_size": [8, 8], "channels": [8, 16]}')
    assert isinstance(build_tokenizer(config), MultiscaleTokenizer) and config.heights == (1, 2, 3, 4)
