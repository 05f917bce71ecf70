"""Completion, variation, interpolation and the cost of an image, all with the same weights."""

import math
import warnings

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.pipeline.image_pipeline import AGAIN, COME, ImagePipeline, _ranks
from smalti.pipeline.mask import fill_unknown, known_places
from smalti.prior.draw import image_uniforms
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.model import TransformerPrior

UPPER = np.arange(8)[:, None].repeat(8, 1) < 4


@pytest.fixture(scope="module")
def raster(finished_run):
    return ImagePipeline.from_models(finished_run / "tokenizer/model", finished_run / "prior/model", SamplingConfig())


@pytest.fixture(scope="module")
def pipeline(raster):
    """Return the pipeline with the same weights, marked as trained in every order."""
    prior = TransformerPrior(raster.prior.config.model_copy(update={"any_order": True})).eval()
    prior.load_state_dict(raster.prior.state_dict())
    return ImagePipeline(raster.tokenizer, prior, SamplingConfig(), raster.identity)


@pytest.fixture(scope="module")
def pictures():
    """Return three pictures of the tokenizer's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    return [PIL.Image.fromarray(each) for each in pixels]


def painted_over(picture: PIL.Image.Image, mask: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.where(mask, np.asarray(picture), 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["pipeline", "raster"])
def test_upper_rows_are_kept_and_the_rest_is_drawn(kind, pictures, request):
    pipe = request.getfixturevalue(kind)
    done, again, other = (pipe.complete(pictures, UPPER, labels=[1, 2, 3], seed=seed) for seed in (0, 0, 50))
    assert torch.equal(done.codes, again.codes)
    assert torch.equal(done.codes[:, :8], other.codes[:, :8]) and not torch.equal(done.codes[:, 8:], other.codes[:, 8:])
    assert done.labels == [1, 2, 3] and done.seeds == [0, 1, 2] and len(done.images) == 3


def test_a_completion_depends_on_no_pixel_that_is_not_kept(pipeline, pictures):
    """The encoder sees beyond a place's own pixels, and must not pass hidden ones on."""
    mask = np.random.default_rng(1).random((8, 8)) < 0.8
    one = pipeline.complete(pictures, mask, seed=0)
    other = pipeline.complete([painted_over(picture, mask) for picture in pictures], mask, seed=0)
    assert torch.equal(one.codes, other.codes)


def test_a_place_is_kept_where_all_its_pixels_are():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 4] = False
    known = known_places(mask, Layout.of(4, 4, factors=(16,)))
    assert (~known).nonzero().tolist() == [[0, 1 * 4 + 2]]


def test_unknown_pixels_become_the_nearest_kept_ones():
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4)
    mask = torch.tensor([[[False, True, True, False]]])
    assert fill_unknown(images, mask).flatten().tolist() == [1, 1, 2, 2]
    assert fill_unknown(images + 5, torch.zeros(1, 1, 4, dtype=torch.bool)).flatten().tolist() == [0] * 4


def test_every_image_may_have_a_mask_of_its_own(pipeline, pictures):
    masks = np.stack([UPPER, ~UPPER, UPPER.T])
    together = pipeline.complete(pictures, masks, seed=3)
    alone = [pipeline.complete(pictures[i], masks[i], seed=3 + i) for i in range(3)]
    assert torch.equal(together.codes, torch.cat([each.codes for each in alone]))


def test_a_raster_prior_says_what_it_does_not_heed(raster, pictures):
    with pytest.warns(UserWarning, match="kept below or right of what is drawn is not heeded.*--order any"):
        raster.complete(pictures, ~UPPER, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raster.complete(pictures, UPPER, seed=0)


def test_variation_draws_a_share_of_the_places_again(pipeline, pictures):
    whole = pipeline.vary(pictures, 0.0, seed=0).codes
    quarter = pipeline.vary(pictures, 0.25, seed=0).codes
    changed = (whole != quarter).sum(1)
    assert torch.equal(whole, pipeline.tokenizer.encode(pipeline_pixels(pictures)).flatten(1))
    assert (changed <= 4).all() and changed.any()
    assert not torch.equal(quarter, pipeline.vary(pictures, 0.25, seed=9).codes)


def test_places_that_are_drawn_again_say_nothing_of_the_numbers_that_draw_their_codes():
    """Both belong to the seed. From one stream, the place that is drawn again had numbers of 0.94 in the mean."""
    places, number = 16, 2000
    drawn = torch.cat([image_uniforms([seed], places) for seed in range(number)])
    for purpose in (AGAIN, COME):
        ranks = torch.cat([_ranks(places, seed, purpose) for seed in range(number)])
        chosen = drawn[ranks == 0]  # one place an image; uniform numbers have a deviation of 0.29
        assert chosen.mean().item() == pytest.approx(0.5, abs=5 * 0.29 / number**0.5)


def pipeline_pixels(pictures: list[PIL.Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))[:, None].float() / 127.5 - 1


def test_interpolation_goes_from_one_image_to_the_other(pipeline, pictures):
    first, last = pictures[:2]
    ends = pipeline.tokenizer.encode(pipeline_pixels([first, last])).flatten(1)
    way = pipeline.interpolate(first, last, 5, share=0.0, seed=0).codes
    assert torch.equal(way[0], ends[0]) and torch.equal(way[-1], ends[1])
    assert ((way == ends[0]) | (way == ends[1])).all()
    near = (way == ends[1]).sum(1)
    assert (near[1:] >= near[:-1]).all() and len(pipeline.interpolate(first, last, 5, seed=0).images) == 5


def test_what_an_image_costs_in_nats_and_in_bits(pipeline, pictures):
    """The cost is the prior's −log p of the image's codes; one bit is ln 2 nats."""
    cost = pipeline.log_prob(pictures, labels=[1, 2, 3])
    codes = pipeline.tokenizer.encode(pipeline_pixels(pictures)).flatten(1)
    torch.testing.assert_close(cost.nats, pipeline.prior.log_prob(codes, torch.tensor([1, 2, 3])))
    torch.testing.assert_close(cost.bits * math.log(2), cost.nats)
    torch.testing.assert_close(pipeline.log_prob(codes, labels=[1, 2, 3]).nats, cost.nats)


def test_without_labels_an_image_is_scored_without_a_class(pipeline, pictures):
    none = pipeline.prior.config.condition.num_classes
    codes = pipeline.tokenizer.encode(pipeline_pixels(pictures)).flatten(1)
    expected = pipeline.prior.log_prob(codes, torch.full((3,), none))
    torch.testing.assert_close(pipeline.log_prob(pictures).nats, expected)


def test_known_codes_cost_nothing(pipeline, pictures):
    known = known_places(torch.from_numpy(UPPER)[None].expand(3, 8, 8), Layout.of(4, 4, factors=(16,)))
    rest, all_known = (
        pipeline.log_prob(pictures, known=known),
        pipeline.log_prob(pictures, known=torch.ones_like(known)),
    )
    assert (rest.bits > pipeline.log_prob(pictures).bits).all() and all_known.nats.eq(0).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, x: p.complete(x, UPPER[:4]), r"booleans, .*\(8, 8\) or \(3, 8, 8\), .*got bool \(4, 8\)"),
        (lambda p, x: p.complete(x, UPPER * 1.0), r"got float64 \(8, 8\)"),
        (lambda p, x: p.complete(x, np.stack([UPPER] * 2)), r"got bool \(2, 8, 8\)"),
        (
            lambda p, x: p.complete(x, UPPER, labels=[1]),
            "one for all images or one for each, got 1 labels and 3 images",
        ),
        (lambda p, x: p.complete(x, UPPER, labels="boot"), "there is no class 'boot'"),
        (lambda p, x: p.complete(x, UPPER, temperature=-1), "temperature"),
        (lambda p, x: p.complete(x, [[True], [True, False]]), "booleans, .*got list, of which no array can be made"),
        (lambda p, x: p.complete(x, None), "booleans, true where a pixel is kept"),
        (lambda p, x: p.complete([], UPPER), "a list of at least one, got .*; PIL.Image.open reads a file"),
        (lambda p, x: p.reconstruct(np.zeros((8, 8))), "got ndarray"),
        (lambda p, x: p.complete([x[0], "cat.png"], UPPER), r"got \['Image', 'str'\]"),
        (
            lambda p, x: p.complete(x, UPPER, labels=[1.5, 2, 3]),
            "a label that is no name must be a whole number, got 1.5",
        ),
        (lambda p, x: p.complete(x, UPPER, seed=True), "seed must be a whole number, got True"),
        (lambda p, x: p.complete(x, UPPER, batch_size=1.5), "batch_size must be a whole number, got 1.5"),
        (lambda p, x: p.vary(x, 1.5), r"share must be a number in \[0, 1\], got 1.5"),
        (lambda p, x: p.vary(x, 0.03), r"a share of 0.03 of the 16 place\(s\) .* is none.*; give more than 0.03125"),
        (lambda p, x: p.log_prob(torch.zeros(2, 16)), "codes must be whole numbers, got torch.float32"),
        (
            lambda p, x: p.log_prob(x, known=torch.ones(2, 16, dtype=torch.bool)),
            r"known must be a bool tensor \(3, 16\)",
        ),
        (lambda p, x: p.interpolate(x[0], x[1], 1), "steps must be at least 2"),
        (lambda p, x: p.log_prob(torch.zeros(2, 9, dtype=torch.int64)), r"the 4 x 4 codes of 16 .*got \(2, 9\)"),
        (lambda p, x: p.log_prob(x, known=torch.ones(3, 9, dtype=torch.bool)), r"known must be bool \(3, 16\)"),
    ],
)
def test_a_wrong_call_says_what_was_expected(pipeline, pictures, call, message):
    with pytest.raises(UserError, match=message):
        call(pipeline, pictures)
