"""The VQ-VAE-2: what a level sees and decodes to, its losses, its codes in use, and its way through the commands."""

import json

import pytest
import torch
from torch import Tensor

from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import open_images
from smalti.common.data.pixels import to_float
from smalti.common.errors import UserError
from smalti.tokenizer.base import DecodesCoarse, DrawsCodes, EmbedsCodes
from smalti.tokenizer.bottleneck.config import FSQConfig, GumbelConfig, LFQConfig, ResidualConfig, VQConfig
from smalti.tokenizer.codebook import Settings as Looking
from smalti.tokenizer.codebook import examine
from smalti.tokenizer.codebooks.upkeep import CodebookUpkeep
from smalti.tokenizer.codebooks.usage import count, reachable, usage
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.evaluate import Settings as Evaluation
from smalti.tokenizer.evaluate import evaluate
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.train import train
from smalti.tokenizer.vqvae2.config import VQVAE2Config
from smalti.tokenizer.vqvae2.model import VQVAE2
from tests.conftest import NO_FEATURES, tokenizer_training

VQ = VQConfig(codebook_size=16, code_dim=4)


def config(**settings) -> VQVAE2Config:
    """Return the settings of 2 x 2 codes of 16 over 4 x 4, of images of 8 x 8 pixels."""
    return VQVAE2Config(**{"image_size": (8, 8), "channels": (8, 16), "quantizer": VQ, **settings})


def model(**settings) -> VQVAE2:
    torch.manual_seed(0)
    return VQVAE2(config(**settings))


def pixels(tokenizer: VQVAE2, number: int = 5) -> Tensor:
    generator, c = torch.Generator().manual_seed(1), tokenizer.config
    return torch.rand(number, c.image_channels, *c.image_size, generator=generator) * 2 - 1


# ----------------------------------------------------------------------------------------------------------- its levels


def test_each_level_above_the_bottom_has_half_its_sides_rounded_up():
    c = config(image_size=(28, 20), patch=2, levels=4)
    assert c.grids == ((1, 1), (2, 2), (4, 3), (7, 5))
    assert str(c.layout) == "1 x 1 codes of 16 + 2 x 2 codes of 16 + 4 x 3 codes of 16 + 7 x 5 codes of 16"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"levels": 3},
        {"levels": 4, "image_size": (28, 20), "patch": 2, "image_channels": 3},
        {"quantizer": ResidualConfig(code_depth=2, each=VQ)},
        {"quantizer": FSQConfig(levels=(4, 4)), "top": VQ},
        {"quantizer": VQ, "top": LFQConfig(bits=4), "attention": True},
    ],
    ids=["two levels", "three levels", "odd sides", "two codes a place", "fsq below vq", "vq below lfq"],
)
def test_the_codes_of_images_decode_to_what_training_computes(settings):
    """Encoding quantizes from the top down; decoding looks the codes up and goes the same way."""
    tokenizer = model(**settings).eval()
    images = pixels(tokenizer)
    codes = tokenizer.encode(images)
    assert codes.shape == (5, tokenizer.config.layout.length)
    assert torch.equal(codes, tokenizer.reconstruct(images).quantized.indices)
    expected = tokenizer.likelihood.nll(tokenizer.output(codes), images)
    torch.testing.assert_close(tokenizer.reconstruct(images).nll, expected)  # fp32 sums over pixels


def test_the_codes_of_a_level_depend_on_those_above_it_and_not_on_those_below():
    tokenizer = model(levels=3).eval()
    features = tokenizer.latents(pixels(tokenizer))
    for changed in range(3):
        before = tokenizer.quantizer.levels(features).z_e
        torch.nn.init.normal_(tokenizer.quantizer.bottlenecks[changed].codebook)
        after = tokenizer.quantizer.levels(features).z_e
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * (changed + 1) + [False] * (
            2 - changed
        )


def test_the_decoder_reads_every_place_of_every_level():
    tokenizer = model(levels=3, image_size=(28, 20), patch=2)
    z_q = [torch.randn(1, 4, *grid, requires_grad=True) for grid in tokenizer.config.grids]
    tokenizer.draw(tokenizer.quantizer.join(z_q)).square().sum().backward()
    for vectors in z_q:
        assert (vectors.grad.abs().sum(1) > 0).all()


def test_the_gradient_of_the_reconstruction_reaches_the_encoder_through_every_level():
    tokenizer = model(levels=3)
    images = pixels(tokenizer)
    levels = tokenizer.quantizer.levels(tokenizer.latents(images))
    nll = tokenizer.likelihood.nll(tokenizer.draw(levels.joined), images).sum()
    first = next(tokenizer.encoder.parameters())
    for z_e, gradient in zip(levels.z_e, torch.autograd.grad(nll, levels.z_e, retain_graph=True), strict=True):
        assert gradient.abs().sum() > 0
        (reached,) = torch.autograd.grad(z_e, first, gradient, retain_graph=True)
        assert reached.abs().sum() > 0


def test_coarse_levels_alone_make_a_picture_whatever_the_finer_ones_hold():
    tokenizer = model(levels=3).eval()
    assert isinstance(tokenizer, DecodesCoarse)
    codes = tokenizer.encode(pixels(tokenizer))
    top, middle, bottom = tokenizer.config.layout.split(codes)
    others = tokenizer.config.layout.join([top, middle, (bottom + 1) % 16])
    assert torch.equal(tokenizer.decode_coarse(codes, 3), tokenizer.decode(codes))
    assert torch.equal(tokenizer.decode_coarse(codes, 2), tokenizer.decode_coarse(others, 2))
    assert not torch.equal(tokenizer.decode_coarse(codes, 2), tokenizer.decode_coarse(codes, 1))


# ----------------------------------------------------------------------------------------------------------- its losses


def moved(tokenizer: VQVAE2, loss: Tensor) -> set[str]:
    """Return the names of the parameters that a loss has a gradient for."""
    tokenizer.zero_grad()
    loss.backward()
    return {n for n, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_each_loss_moves_one_side_only():
    tokenizer = model()
    of_codebooks = {f"quantizer.bottlenecks.{level}.codebook" for level in range(2)}
    losses = tokenizer(pixels(tokenizer)).losses
    assert moved(tokenizer, losses["codebook_loss"]) == of_codebooks
    losses = tokenizer(pixels(tokenizer)).losses
    by_commitment = moved(tokenizer, losses["commitment_loss"])
    assert not by_commitment & of_codebooks
    assert {"encoder.0.weight", *(f"quantizer.projections.{level}.weight" for level in range(2))} <= by_commitment


def test_the_losses_are_the_sums_of_those_of_the_levels():
    tokenizer = model(levels=3)
    images = pixels(tokenizer)
    each = tokenizer.quantizer.levels(tokenizer.latents(images)).quantized
    losses = tokenizer(images).losses
    for name in ("codebook_loss", "commitment_loss", "regularizer"):
        torch.testing.assert_close(losses[name], sum(getattr(level, name) for level in each))  # fp32 rounding


def test_codes_that_are_drawn_train_and_are_scored_by_the_chosen_ones():
    """A top code that is drawn changes what the bottom sees: log q(z | x) is no product over places."""
    tokenizer = model(quantizer=GumbelConfig(codebook_size=16, code_dim=4))
    images = pixels(tokenizer)
    assert tokenizer(images).losses["regularizer"] > 0
    assert not tokenizer.stochastic and tokenizer.log_posterior(images) is None


# ----------------------------------------------------------------------------------------------------- its codes in use


@pytest.mark.parametrize("settings", [{"levels": 3}, {"top": FSQConfig(levels=(4, 4))}], ids=["vq", "vq below fsq"])
def test_the_codes_of_every_level_are_in_use_from_the_start(settings, accelerator, tmp_path):
    """The top's codebook is K-means of its outputs, and the bottom's of what it makes of them and the top's codes."""
    c = tokenizer_training(tmp_path, model=config(**settings))
    tokenizer = model(**settings)
    train_split = open_images(ImagesConfig(), (8, 8), 1).splits["train"]
    tokenizer.begin(train_split, c, accelerator)
    images = to_float(train_split.read(torch.arange(len(train_split))).images)
    counts = count(tokenizer.encode(images), c.model.layout)
    fitted = counts[len(counts) - len(tokenizer.tables()) :]  # those with a table
    assert (usage(fitted), reachable(fitted)) == (1.0, pytest.approx(1.0, abs=1e-6))


def test_a_level_with_too_few_places_for_its_codebook_is_refused(accelerator, tmp_path):
    large = VQConfig(codebook_size=2000, code_dim=4)
    c = tokenizer_training(tmp_path, model=config(levels=3, quantizer=large))
    with pytest.raises(UserError, match=r"2000 is more than the 1419 x 1 x 1 = 1419 vectors .*fewer model\.levels"):
        train(c, accelerator)


def test_each_table_is_kept_in_use_by_the_codes_of_its_own_level():
    above, below = (ResidualConfig(code_depth=2, each=each) for each in (FSQConfig(levels=(4, 4)), VQ))
    tokenizer = model(levels=3, top=above, quantizer=below)
    images = pixels(tokenizer)
    stages = tokenizer(images).quantized.stages
    bottom = tokenizer.quantizer.levels(tokenizer.latents(images)).quantized[-1]
    assert len(stages) == len(tokenizer.tables()) == 2
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(stages, bottom.stages, strict=True))


def test_upkeep_counts_the_places_of_each_level():
    tokenizer = model()
    upkeep = CodebookUpkeep(tokenizer.tables(), revive_below=0.05)
    upkeep.observe(tokenizer(pixels(tokenizer)).quantized)
    assert [int(table._step_counts.sum()) for table in upkeep.tables] == [5 * 4, 5 * 16]


def test_a_codes_picture_is_as_large_as_its_place(accelerator):
    tokenizer = model(levels=3).eval()
    assert isinstance(tokenizer, DrawsCodes)
    for row, side in enumerate((8, 4, 2)):
        drawn = tokenizer.code_pictures(torch.ones(3, 16), row, torch.arange(16))
        assert drawn.shape == (16, 1, side, side) and drawn.std(0).sum() > 0


def test_the_advice_names_the_levels_and_settings_that_there_are():
    three, two = config(levels=3).codebook, config().codebook
    assert three.without(["grid 1 x 1"], 2) == "model.levels 2"
    assert two.without(["grid 2 x 2"], 1) == "model.kind vqvae, which has one level"
    assert "model.channels" in two.without(["grid 4 x 4"], 1)
    stacked = config(quantizer=ResidualConfig(code_depth=2, each=VQ)).codebook
    assert stacked.without(["grid 2 x 2, depth 2"], 3) == "a smaller model.quantizer.code_depth"


# --------------------------------------------------------------------------------------------------- settings and runs


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"levels": 4}, "levels 4: a bottom grid of 4 x 4 can be halved 2 times, which makes 3 levels; take fewer"),
        ({"levels": 1}, "greater than or equal to 2"),
        ({"top": VQConfig(codebook_size=8)}, "top makes 8 codes and quantizer 16: one prior draws all levels"),
        ({"top": ResidualConfig(code_depth=2, each=VQ)}, "top makes 2 codes a place and quantizer 1: one prior"),
        ({"image_size": (9, 8)}, "a height of 9 does not divide"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(settings, told):
    with pytest.raises(ValueError, match=told):
        config(**settings)


def test_levels_of_other_digits_have_whole_numbers_for_codes():
    assert config(top=FSQConfig(levels=(4, 4))).layout.factors == (16,)
    assert config(quantizer=FSQConfig(levels=(4, 4))).layout.factors == (4, 4)


def test_a_saved_tokenizer_gives_the_same_codes_and_images(tmp_path):
    tokenizer = model(levels=3, top=FSQConfig(levels=(4, 4))).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded, images = load_tokenizer(tmp_path), pixels(tokenizer)
    assert loaded.config == tokenizer.config
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded.decode(loaded.encode(images)), tokenizer.decode(tokenizer.encode(images)))


def test_it_passes_through_every_command_of_its_stage(tmp_path, accelerator):
    train(tokenizer_training(tmp_path, model=config(levels=3), steps=20), accelerator)
    with pytest.raises(UserError, match="vectors true needs"):
        encode(EncodeSettings(run=str(tmp_path), vectors=True), accelerator)
    encode(EncodeSettings(run=str(tmp_path), views=1, precision="fp32"), accelerator)
    figures = json.loads(evaluate(Evaluation(run=str(tmp_path), features=NO_FEATURES), accelerator).read_text())
    assert figures["figures"]["uniform_rate"] == pytest.approx(21 * 4 / 64)
    found = examine(Looking(run=str(tmp_path)), accelerator)
    assert found["counted_from"].endswith("codes")
    names = [each["name"] for each in found["splits"]["train"]["depths"]]
    assert names == ["grid 1 x 1", "grid 2 x 2", "grid 4 x 4"]
    assert not isinstance(load_tokenizer(tmp_path / "tokenizer/model"), EmbedsCodes)
