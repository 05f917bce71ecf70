"""Pictures refined: coarse grids are kept, finer ones are drawn, and the page shows both."""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.errors import UserError
from smalti.common.layout import Grid, Layout
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.mask import known_places
from smalti.pipeline.playground.controller import open_controller
from smalti.pipeline.playground.rendering import data_uri
from smalti.prior.config import PriorConfig
from smalti.prior.model import build_prior
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.tokenizer.bottleneck.config import VQConfig
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.multiscale.model import MultiscaleTokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE

STARTS = (0, 1, 5, 21)  # of the codes of grids of 1, 2 and 4 a side, and their end


def pipeline_of(tokenizer) -> ImagePipeline:
    """Return a pipeline of a tokenizer and a Transformer with random weights, of classes a and b."""
    identity = TokenizerIdentity(name="test", sha256="0" * 64)
    architecture = TransformerConfig(depth=1, dim=32, heads=2, dropout=0.0)
    layout, condition = tokenizer.config.layout, condition_of(("a", "b"))
    prior = build_prior(
        PriorConfig(layout=layout, condition=condition, tokenizer=identity, architecture=architecture)
    ).eval()
    torch.nn.init.normal_(prior.head.weight, std=0.5)  # untrained, every code is alike likely
    return ImagePipeline(tokenizer.eval(), prior, SamplingConfig(), identity)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=16, code_dim=4)
    return pipeline_of(
        MultiscaleTokenizer(
            MultiscaleConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer, scales=(1, 2, 4))
        )
    )


@pytest.fixture(scope="module")
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    return [PIL.Image.fromarray(each) for each in pixels]


@pytest.mark.parametrize("from_scale", [0, 1, 2])
def test_coarse_grids_are_kept_and_finer_ones_are_drawn(pipeline, pictures, from_scale):
    whole = pipeline.complete(pictures, np.ones((8, 8), bool), labels="a").codes
    one, other = (pipeline.refine(pictures, from_scale, labels="a", seed=seed) for seed in (0, 50))
    kept = STARTS[from_scale]
    assert torch.equal(one.codes[:, :kept], whole[:, :kept]) and torch.equal(other.codes[:, :kept], whole[:, :kept])
    assert not torch.equal(one.codes[:, kept:], other.codes[:, kept:]) and one.seeds == [0, 1, 2]
    assert [image.size for image in one.images] == [(8, 8)] * 3


def test_what_was_drawn_keeps_the_coarse_codes_that_were_drawn(pipeline):
    """Its pictures encoded again have other codes: with weights that hardly trained, in most places."""
    drawn = pipeline(labels=["a", "b"], seed=3)
    assert not torch.equal(pipeline.refine(drawn.images, 2, seed=0).codes[:, :5], drawn.codes[:, :5])
    assert torch.equal(pipeline.refine(drawn.codes, 2, seed=0).codes[:, :5], drawn.codes[:, :5])


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(1, 20, dtype=torch.int64), r"codes must be \(B, 21\), the .* got \(1, 20\)"),
        (torch.full((1, 21), 16), "codes must be from 0 to 15, got 16 to 16"),
        (torch.zeros(1, 21), "codes must be whole numbers, got torch.float32"),
    ],
)
def test_codes_that_cannot_be_are_refused(pipeline, codes, message):
    for use in (lambda: pipeline.refine(codes, 1), lambda: pipeline.vary(codes), lambda: pipeline.log_prob(codes)):
        with pytest.raises(UserError, match=message):
            use()


def test_a_smaller_picture_is_made_larger(pipeline, pictures):
    (image,) = pipeline.refine(pictures[0].resize((4, 4)), 2, seed=0).images
    assert image.size == (8, 8)


@pytest.mark.parametrize(
    "from_scale, message", [(3, "from 0 to 2, the grids of 1 x 1 codes"), (-1, "from 0 to 2"), (1.5, "a whole number")]
)
def test_a_scale_that_the_layout_has_not_is_refused(pipeline, pictures, from_scale, message):
    with pytest.raises(UserError, match=message):
        pipeline.refine(pictures, from_scale)


def test_a_pipeline_of_one_grid_refines_nothing_and_says_what_would(pictures):
    one_grid = pipeline_of(VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8, 16))))
    with pytest.raises(UserError, match="one grid: refine needs several, coarse first, as the tokenizers multiscale"):
        one_grid.refine(pictures, 1)
    with pytest.raises(UserError, match="no coarse grids that make a picture alone"):
        one_grid.decode_coarse(torch.zeros(1, 16, dtype=torch.int64), 1)


def test_coarse_grids_make_a_picture_that_does_not_depend_on_finer_ones(pipeline):
    codes = torch.randint(16, (2, 21), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[:, 5:] = 0
    assert torch.equal(pipeline.decode_coarse(codes, 2), pipeline.decode_coarse(other, 2))
    assert torch.equal(pipeline.decode_coarse(codes, 3), pipeline.decode(codes))


@pytest.mark.parametrize(
    ("grids", "message"),
    [(0, "from 1 to 3"), (4, "from 1 to 3"), (1.5, "a whole number, got 1.5"), (True, "a whole number, got True")],
)
def test_a_number_of_grids_that_is_none_is_refused(pipeline, grids, message):
    with pytest.raises(UserError, match=message):
        pipeline.decode_coarse(torch.zeros(1, 21, dtype=torch.int64), grids)


def test_a_coarse_picture_alone_is_that_among_others_and_wrong_codes_are_refused(pipeline):
    codes = torch.randint(16, (5, 21), generator=torch.Generator().manual_seed(0))
    whole = pipeline.decode_coarse(codes, 2)
    assert torch.equal(torch.cat([pipeline.decode_coarse(each[None], 2) for each in codes]), whole)
    with pytest.raises(ValueError, match="codes must lie in"):
        pipeline.decode_coarse(codes + 16, 2)
    assert pipeline.decode_coarse(codes[:0], 2).shape == pipeline.decode(codes[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_codes_of_any_type_of_whole_numbers_are_taken_as_they_lie_on_the_disk(pipeline, kind):
    codes = torch.randint(16, (2, 21), generator=torch.Generator().manual_seed(0))
    for draw in (lambda c: pipeline.refine(c, 1, seed=3), lambda c: pipeline.vary(c, 0.5, seed=3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(draw(codes.to(kind)).codes, draw(codes).codes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [(torch.zeros(0, 21).long(), "at least one image, got none"), (torch.ones(1, 21).bool(), "got torch.bool")],
)
def test_no_codes_and_booleans_are_refused(pipeline, codes, message):
    with pytest.raises(UserError, match=message):
        pipeline.vary(codes)


def test_what_is_drawn_can_be_changed_and_learnt_from(pipeline):
    """It is no tensor of torch's inference mode."""
    drawn = pipeline(num_images=2, seed=0).codes
    images = pipeline.decode(drawn)
    for each in (drawn, images, pipeline.encode_pixels(images), pipeline.decode_coarse(drawn, 1)):
        each[0, 0] = 1
        assert not each.is_inference()


def test_keeping_fine_places_under_coarse_ones_that_are_drawn_is_told(pipeline, pictures, recwarn):
    """The picture is the sum over grids: half of it looks different once the code of the whole is drawn anew."""
    told = "drawn anew over finer ones that are kept"
    upper = np.arange(8)[:, None].repeat(8, 1) < 4
    with pytest.warns(UserWarning, match=told):
        pipeline.complete(pictures, upper)
    with pytest.warns(UserWarning, match=told):
        pipeline.vary(pictures, 0.5, seed=0)
    recwarn.clear()
    pipeline.complete(pictures, np.ones((8, 8), bool))
    pipeline.complete(pictures, np.zeros((8, 8), bool))
    pipeline.refine(pictures, 2)
    assert not any(told in str(each.message) for each in recwarn)


def test_a_coarse_place_is_kept_where_all_finer_ones_that_it_lies_over_are():
    """Of 28 pixels over 7 and 4 places, the second coarse one lies over rows 2 and 3, which are pixels 8 to 15."""
    layout = Layout(grids=(Grid(shape=(4, 4), factors=(2,)), Grid(shape=(7, 7), factors=(2,))))
    for rows, coarse in ((14, 1), (16, 2), (15, 1), (28, 4), (24, 3), (7, 0)):
        mask = (torch.arange(28) < rows)[:, None].expand(28, 28)[None]
        kept = known_places(mask, layout)[0, :16].view(4, 4)
        assert kept.all(1).sum() == kept.any(1).sum() == coarse, rows


def test_a_place_that_a_mask_touches_is_not_kept_in_any_grid():
    """Three places of eight pixels share the pixels on their borders."""
    layout = Layout(grids=(Grid(shape=(1, 1), factors=(2,)), Grid(shape=(3, 3), factors=(2,))))
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[0, 2, 0] = False  # of rows 0 to 2 and 2 to 5, column 0 to 2
    assert known_places(mask, layout)[0].tolist() == [False, False, True, True, False, *[True] * 5]


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_shows_a_picture_by_its_coarse_grids_and_draws_the_finer_ones(pipeline):
    controller = open_controller(pipeline, None)
    drawn = controller.draw([0], 1, 0, {})
    held = controller.pick(drawn, 0)
    coarse = [controller.coarse(held, kept) for kept in (1, 2, 3)]
    assert len(set(coarse)) == 3 and "1 × 1 + 2 × 2" in coarse[1] and "2 of 3 grids" in coarse[1]
    refined = controller.refine(held, 1, 0, 4, 7, {})
    assert refined.count("<img") == 4 and "seed 7" in refined
    kept = pipeline.refine(drawn.codes, 1, labels="a", seed=7)
    assert torch.equal(kept.codes[:, :1], held.codes[:, :1]) and data_uri(kept.images[0]) in refined
    assert refined == controller.refine(held, 1, 0, 4, 7, {}) != controller.refine(held, 2, 0, 4, 7, {})


def test_with_all_grids_kept_nothing_is_left_to_draw(pipeline):
    controller = open_controller(pipeline, None)
    held = controller.pick(controller.draw([0], 1, 0, {}), 0)
    with pytest.raises(UserError, match="all grids are kept: move the slider to the left"):
        controller.refine(held, 3, 0, 4, 7, {})


def test_the_page_shows_the_codes_of_every_grid(pipeline):
    controller = open_controller(pipeline, None)
    shown = controller.look(controller.pick(controller.draw([0], 1, 0, {}), 0))
    assert all(f"its codes, grid {n} x {n}" in shown for n in (1, 2, 4))
