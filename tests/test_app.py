"""The interactive page: what a visitor can do on it, first without a browser, then in a real one whose pixels are
compared."""

import base64
import io
import json
import re
import resource
import shutil
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common import folder
from smalti.common.codes_info import TokenizerIdentity
from smalti.common.condition import condition_of
from smalti.common.data.pixels import from_pil, to_pil
from smalti.common.errors import UserError
from smalti.pipeline import growth
from smalti.pipeline.app import Settings, check_address, code_counts_of, load_pipeline, name_of, serve
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.pipeline.playground import grid_board, rendering
from smalti.pipeline.playground.codebook_browser import PAGE
from smalti.pipeline.playground.controller import (
    Canvas,
    Controller,
    controls,
    open_controller,
    read_sampling,
    smaller,
)
from smalti.pipeline.playground.endpoints import Endpoints
from smalti.pipeline.playground.examples import PICTURES, example_picture, examples
from smalti.pipeline.playground.project import project_link
from smalti.pipeline.playground.view import CONTRAST, difference
from smalti.prior.config import PriorConfig
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.model import build_prior, load_prior
from smalti.prior.prediction_order import known_first
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior
from smalti.tokenizer.bottleneck.config import ResidualConfig, VQConfig
from smalti.tokenizer.vqvae.config import VQVAEConfig
from smalti.tokenizer.vqvae.model import VQVAE
from tests import processes
from tests.widths import beyond_the_window

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '<img src="nowhere:1" onerror="alert(1)">{{#each}}${1+1}'  # a class name that a stranger may choose
PLACES, LOWER = 16, list(range(8, 16))


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """Return a run whose drawn images differ, and whose class 2 has a hostile name."""
    run = shutil.copytree(
        finished_run, tmp_path_factory.mktemp("app") / "digits", ignore=shutil.ignore_patterns("state")
    )
    path = run / "prior/model"
    prior = load_prior(path)
    torch.manual_seed(0)
    torch.nn.init.normal_(prior.head.weight, std=0.5)  # after six steps of training the classes still look alike
    names = ("0", "1", HOSTILE, *map(str, range(3, 10)))
    named = TransformerPrior(prior.config.model_copy(update={"condition": condition_of(names)}))
    named.load_state_dict(prior.state_dict())
    named.save_pretrained(path)
    return run


@pytest.fixture(scope="module")
def pipeline(run):
    return load_pipeline(str(run))


@pytest.fixture(scope="module")
def controller(run, pipeline):
    return open_controller(pipeline, code_counts_of(run, pipeline))


@pytest.fixture
def at_once(monkeypatch):
    """Let images grow without a pause between the frames."""
    for pause in ("PACE", "PACE_OF_PASSES"):
        monkeypatch.setattr(f"smalti.pipeline.playground.controller.{pause}", 0.0)


def of_random_weights(class_names, quantizer, architecture=None) -> ImagePipeline:
    torch.manual_seed(0)
    tokenizer = VQVAE(VQVAEConfig(image_size=(8, 8), channels=(8, 16), quantizer=quantizer)).eval()
    identity, c = TokenizerIdentity(name="test", sha256="0" * 64), tokenizer.config
    prior = PriorConfig(
        layout=c.layout,
        condition=condition_of(class_names),
        tokenizer=identity,
        architecture=architecture or TransformerConfig(depth=1, dim=16, heads=2, dropout=0.0),
    )
    return ImagePipeline(tokenizer, build_prior(prior).eval(), SamplingConfig(), identity)


VQ = VQConfig(codebook_size=16, code_dim=4)
RESIDUAL = ResidualConfig(code_depth=2, each=VQ)


class Address(str):
    log: Path


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


# ---------------------------------------------------------------------------------------------------- without a browser


def test_what_is_drawn_on_the_page_is_what_the_pipeline_draws(controller, pipeline):
    sampling = read_sampling(0.8, 1.5, None, 5, 0.9, 0.0)
    assert sampling == {"temperature": 0.8, "guidance": 1.5, "steps": None, "top_k": 5, "top_p": 0.9, "min_p": None}
    drawn, expected = controller.draw([3, 7], 4, 11, sampling), pipeline([3, 7], num_images=4, seed=11, **sampling)
    assert np.array_equal(pixels(drawn.images), pixels(expected.images)) and drawn.seeds == [11, 12, 13, 14]
    assert not np.array_equal(pixels(drawn.images), pixels(controller.draw([3, 7], 4, 12, sampling).images))


def test_controls_that_nobody_touched_draw_with_the_pipelines_own_settings():
    for settings in (
        SamplingConfig(),
        SamplingConfig(temperature=0.7, steps=9, top_k=3, top_p=0.9, min_p=0.1, guidance=2.0),
    ):
        assert SamplingConfig(**read_sampling(**controls(settings))) == settings


def test_the_first_places_of_finished_codes_are_all_the_sampler_knew_when_it_drew_the_next(pipeline):
    """Showing the codes one after the other therefore shows how the image was drawn, in whatever order the prior was
    trained."""
    labels, seeds, places = torch.tensor([3, 7]), [5, 6], 6
    sampler = pipeline.sampler(precision="fp32")
    codes = sampler(labels, seeds)
    known = growth.first_places(places, PLACES).expand(2, -1)
    others = torch.where(known, codes, 15 - codes)  # the codes after them are not read
    assert torch.equal(sampler(labels, seeds, others, known), codes)
    assert torch.equal(known_first(torch.zeros(1, PLACES, dtype=torch.bool))[0], torch.arange(PLACES))


def test_an_image_grows_place_by_place_and_ends_as_it_is(controller, at_once):
    drawn = controller.draw([1], 2, 0, {})
    frames = [pixels(images) for images in controller.grow(drawn)]
    grey = [(frame.reshape(2, 4, 2, 4, 2) == growth.UNDRAWN).all((2, 4)).sum(axis=(1, 2)) for frame in frames[:-1]]
    assert [counts.tolist() for counts in grey] == [[PLACES - n] * 2 for n in range(PLACES)]
    assert np.array_equal(frames[-1], pixels(drawn.images))


def test_a_prior_that_draws_in_passes_is_watched_at_them(at_once):
    controller = open_controller(of_random_weights(("a", "b"), VQ, MaskedConfig(depth=1, dim=16, heads=2)), None)
    sampling = read_sampling(1.0, None, 5, None, 1.0, 0.0)
    drawn = controller.draw([1], 2, 0, sampling)
    frames = [pixels(images) for images in controller.grow(drawn, sampling)]
    grey = [(frame.reshape(2, 4, 2, 4, 2) == growth.UNDRAWN).all((2, 4)).sum(axis=(1, 2)) for frame in frames]
    assert [counts.tolist() for counts in grey] == [[n, n] for n in (15, 12, 9, 4, 0, 0)]  # 16 cos(π/2 · i/5)
    assert np.array_equal(frames[-2], frames[-1]) and np.array_equal(frames[-1], pixels(drawn.images))


def test_many_images_grow_in_fewer_frames():
    assert growth.frames_of(1024, 20) == [1024 * n // 32 for n in range(32)]
    assert len(growth.frames_of(1024, 1)) == growth.FRAMES


def test_a_difference_is_grey_where_there_is_none_and_fourfold_elsewhere():
    image = torch.tensor([100, 100, 100, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    again = torch.tensor([100, 110, 90, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    assert difference(image, again).flatten().tolist() == [128, 128 + 10 * CONTRAST, 128 - 10 * CONTRAST, 255]


def test_invisible_colours_do_not_differ():
    image = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).view(1, 4, 1, 1)
    again = torch.tensor([90, 80, 70, 0], dtype=torch.uint8).view(1, 4, 1, 1)
    assert difference(image, again).flatten().tolist() == [128] * 3


def test_a_completion_on_the_page_is_the_pipelines(controller, pipeline):
    held = controller.pick(controller.draw([3], 1, 0, {}), 0)
    made, told = controller.complete(held, LOWER, 3, 2, 5, {})
    kept = np.arange(8)[:, None].repeat(8, 1) < 4
    expected = pipeline.complete(to_pil(held.image) * 2, kept, labels=[3, 3], seed=5)
    assert [np.asarray(image).tolist() for image in images_of(made)[1:]] == [
        np.asarray(i).tolist() for i in expected.images
    ]
    assert told == []


def test_a_raster_prior_says_on_the_page_what_it_does_not_heed(controller):
    held = controller.pick(controller.draw([3], 1, 0, {}), 0)
    _, (told,) = controller.complete(held, [5], 3, 1, 5, {})
    assert "kept below or right of what is drawn is not heeded" in told


def test_painting_changes_one_code_and_can_be_undone(controller):
    blank = controller.blank(Canvas(torch.zeros(1, PLACES, dtype=torch.int64), ()))
    usual, other = int(controller.codebook.usual[0]), (int(controller.codebook.usual[0]) + 1) % 16
    painted = controller.paint(blank, [5, 6], 0, other)
    assert painted.codes[0].tolist() == [other if place in (5, 6) else usual for place in range(PLACES)]
    assert torch.equal(controller.undo(painted).codes, blank.codes) and controller.undo(blank) == blank


def test_the_codebook_is_browsed_by_use_or_by_number(run, controller):
    counts = torch.tensor(folder.read_json(run / "tokenizer/histogram.json")["counts"][0])
    by_use = controller.codebook.page(0, True, 0)
    assert (counts[by_use][1:] <= counts[by_use][:-1]).all() and sorted(by_use.tolist()) == list(range(16))
    assert controller.codebook.page(0, False, 0).tolist() == list(range(16))
    assert controller.code_at([3], 0, True, 0) == by_use[3] and controller.code_at([PAGE], 0, True, 0) is None


def test_the_nearest_codes_are_the_nearest_vectors(controller):
    near = controller.codebook.near(0, 4)
    vectors = torch.nn.functional.normalize(controller.pipeline.tokenizer.quantizer.codebook.detach(), dim=1)
    expected = (vectors - vectors[4]).norm(dim=1).argsort()[1:7]
    assert near.codes.tolist() == expected.tolist()


def test_a_book_that_nobody_counted_says_so(pipeline):
    assert "nobody counted" in open_controller(pipeline, None).tell(0, 3)


def test_two_codes_a_place_are_shown_and_painted_by_depth(at_once):
    controller = open_controller(of_random_weights(("a", "b"), RESIDUAL), None)
    held = controller.pick(controller.draw([1], 1, 0, {}), 0)
    assert held.codes.shape == (1, 2 * PLACES)
    assert "its codes, depth 2" in controller.look(held) and "of depth 2" in controller.tell(1, 3)
    painted = controller.paint(Canvas(held.codes, ()), [5], 1, 15)
    assert (painted.codes != held.codes).nonzero().tolist() in ([[0, 11]], []) and painted.codes[0, 11] == 15
    assert len(list(controller.grow(controller.draw([0], 1, 0, {})))) == PLACES + 1
    assert controller.codes_board(1, True, 0, 3)["chosen"] is not None
    assert images_of(controller.complete(held, LOWER, None, 1, 0, {})[0])


class Toned(VQVAE):
    """A VQ-VAE that is told of the class: of class 0 its images are dark, of class 1 bright."""

    condition = condition_of(("dark", "bright"))

    def _encode(self, images, condition):
        return super()._encode(images, None)

    def _decode(self, latents, condition):
        return super()._decode(latents, None) / 4 + condition.view(-1, 1, 1, 1) - 0.5


def test_codes_grow_and_are_painted_as_of_the_class_that_the_tokenizer_is_told_of(at_once):
    """They were decoded without one, which such a tokenizer refuses."""
    plain = of_random_weights(Toned.condition.class_names, VQ)
    told = Toned(plain.tokenizer.config).eval()
    controller = open_controller(ImagePipeline(told, plain.prior, plain.sampling, plain.identity), None)
    drawn = controller.draw([0, 1], 2, 0, {})
    for dark, bright in (pixels(images) for images in controller.grow(drawn)):
        assert ((dark < 128) | (dark == growth.UNDRAWN)).all() and (bright > 128).all()
    canvas = controller.canvas(controller.pick(drawn, 1))
    painted = controller.undo(controller.paint(controller.blank(canvas), [5], 0, 3))
    for each in (canvas, painted):
        assert (pixels([read_image(controller.canvas_board(each)["src"])]) > 128).all()


def test_a_prior_without_classes_draws_without_labels():
    controller = open_controller(of_random_weights(None, VQ), None)
    drawn = controller.draw([], 2, 4, read_sampling(1.0, None, None, 0, 1.0, 0.0))
    assert drawn.labels is None and controller.captions(drawn) == [("seed 4", ""), ("seed 5", "")]
    assert controller.pick(drawn, 1).label is None


@pytest.mark.parametrize("share, visible", [(0.0, False), (0.1, True), (None, True)])
def test_guidance_is_offered_where_the_prior_takes_it(share, visible):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    from smalti.pipeline.playground.gradio_page import make_page

    pipeline = of_random_weights(("a", "b"), VQ)
    pipeline.prior.config = pipeline.prior.config.model_copy(update={"hidden": share})
    page = make_page(open_controller(pipeline, None), "digits")
    assert page.guidance.visible == visible
    assert ("guidance" in page._sampling(1.0, 2.0, 0, 0, 1.0, 0.0)) == visible


def test_what_is_typed_beside_a_slider_counts_as_the_nearest_value_that_it_has():
    """While 99 or nothing stood there an error came, and the tab Scales showed other grids than the slider said."""
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    from smalti.pipeline.playground.gradio_page import make_page

    page = make_page(open_controller(of_random_weights(("a", "b"), VQ), None), "digits")
    sliders = [each for each in page.blocks.blocks.values() if isinstance(each, gradio.Slider)]
    assert len(sliders) > 5
    for each in sliders:
        ends = (each.minimum, each.maximum, each.minimum)
        assert tuple(map(each.preprocess, (-(10**9), 10**9, None))) == ends, each.label
    assert [page.number.preprocess(typed) for typed in (7, 7.4, 7.5)] == [7, 7, 8]  # a browser puts a half up
    assert page.temperature.preprocess(0.85) == 0.85


def test_a_dropped_picture_is_priced_as_of_the_class_that_is_chosen(controller, pipeline):
    dropped = controller.drop(file_of(controller.draw([3], 1, 0, {}).images[0]))
    for label in (None, 3, 7):
        look = controller.look(controller.relabel(dropped, label))
        names = None if label is None else controller.names[label]
        bits = -pipeline.log_prob(dropped.codes, labels=names).bits.item()
        given = "without a class" if label is None else f"given the class {label}"
        assert f"<dd>{round(bits)} bits</dd>" in look and given in look


@pytest.mark.parametrize("architecture, bound", [(None, False), (MaskedConfig(depth=1, dim=16, heads=2), True)])
def test_both_figures_of_bits_are_explained_beside_them(architecture, bound):
    controller = open_controller(of_random_weights(("a", "b"), VQ, architecture), None)
    look = controller.look(controller.pick(controller.draw([1], 1, 0, {}), 0))
    assert "<dd>64 bits</dd>" in look and "each of the 16 codes is one of 16 and costs log2 16 = 4 bits" in look
    assert "−log2 p(codes), given the class b" in look
    assert ("<dd>at most " in look) == ("This prior gives a bound" in look) == bound


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("channels, black_and_white", [(1, False), (1, True), (3, False), (4, False)])
def test_an_example_picture_is_of_the_tokenizers_kind(name, channels, black_and_white):
    image = example_picture(name, channels, (12, 8), black_and_white)
    assert image.shape == (1, channels, 12, 8) and image[:, :3].float().std() > 20
    assert not black_and_white or set(image.unique().tolist()) == {0, 255}
    assert channels < 4 or (image[:, 3] == 255).all()


def test_examples_ask_for_what_the_prior_takes():
    every, one, cold, hot = examples(("a", "b"), ("temperature",), 0.8)
    assert (every.number, every.temperature, one.labels) == (4, 0.8, [1]) and cold.temperature < 0.8 < hot.temperature
    assert examples(None, (), 1.0) == []


def test_the_project_is_linked_where_the_package_names_an_address(tmp_path, monkeypatch):
    """`[project.urls]` of pyproject.toml comes to the installed package as these lines; without any, no link is made
    up."""
    (tmp_path / "smalti-0.0.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    head = "Metadata-Version: 2.4\nName: smalti\nVersion: 0.0.0\n"
    for urls, link in (("", None), ("Project-URL: Source, https://example.org/smalti\n", "https://example.org/smalti")):
        (tmp_path / "smalti-0.0.0.dist-info/METADATA").write_text(head + urls)
        assert project_link() == link


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50), b""])
def test_a_file_that_is_no_picture_is_refused_in_words(controller, tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a picture: .*; drop a PNG, JPEG or WebP file") as error:
        controller.drop(str(tmp_path / "a.png"))
    assert str(tmp_path) not in str(error.value)


def test_a_picture_too_large_is_refused_before_it_is_read(controller, tmp_path):
    """A PNG of 187 kB with 8000 x 8000 pixels took 1.8 GiB."""
    PIL.Image.new("1", (8000, 8000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="8000 x 8000 pixels are more than 20,000,000"):
        controller.drop(str(tmp_path / "a.png"))


def test_eight_large_pictures_dropped_at_once_take_the_memory_of_one(tmp_path):
    """Each picture took forty bytes a pixel, all at the same time, and malloc kept what each thread had taken."""
    PIL.Image.new("RGBA", (3200, 3200)).save(tmp_path / "a.png")
    controller = open_controller(of_random_weights(None, VQ), None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(8) as visitors:
        held = list(visitors.map(controller.drop, [str(tmp_path / "a.png")] * 8))
    assert all(torch.equal(each.image, held[0].image) for each in held)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 2**10  # KiB


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1800, 1300), (10, 250_000)])
def test_a_large_picture_made_smaller_first_looks_as_it_does_whole(mode, size):
    """The results agree up to the rounding of averaging twice: a stripe of half the width stays in place."""
    picture = PIL.Image.new("L", size)
    picture.paste(255, (0, 0, size[0] // 2, size[1]))
    picture = (
        PIL.Image.fromarray(np.asarray(picture).astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    )
    made, whole = (from_pil([each], (8, 8), 1).int() for each in (smaller(picture, (8, 8)), picture))
    assert (made - whole).abs().max() <= 2


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),  # PIL would start Ghostscript
        ("a.pdf", b"%PDF-1.4\n"),
        ("a.svg", b"<svg/>"),
        ("a.jpg", b"\0\0\1\0\1\0"),  # the header of an icon is not that of its picture
    ],
)
def test_a_format_that_is_more_than_a_raster_is_not_opened(controller, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="it is no picture of a format that is read; drop a PNG, JPEG or WebP file"):
        controller.drop(str(tmp_path / name))


# --------------------------------------------------------------------------------------------------------- for programs


@pytest.fixture(scope="module")
def client(address):
    from gradio_client import Client  # installed with Gradio

    return Client(address, verbose=False)


def test_a_program_draws_by_name_what_the_pipeline_draws(client, pipeline):
    drawn = client.predict(labels=["3", "7"], number=3, seed=11, temperature=0.8, api_name="/draw")
    expected = pipeline(["3", "7"], num_images=3, seed=11, temperature=0.8)
    assert np.array_equal(pixels(map(read_image, drawn["images"])), pixels(expected.images))
    assert drawn["labels"] == ["3", "7", "3"] and drawn["seeds"] == [11, 12, 13]
    assert drawn["codes"] == expected.codes.tolist()
    assert client.predict(codes=drawn["codes"], api_name="/decode")["images"] == drawn["images"]


def test_the_lines_of_the_docs_that_ask_the_page_run(address, tmp_path, monkeypatch):
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^    import base64\n(?:    .*\n|\n)+", page, re.M)
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(lines).replace("http://127.0.0.1:7860", address), {})
    assert PIL.Image.open(tmp_path / "3.png").size == (8, 8)


def test_a_program_looks_at_a_picture_and_completes_it(client, pipeline):
    (image,) = pipeline(["3"], seed=4).images
    found = client.predict(picture=rendering.data_uri(image), label="3", api_name="/look")
    codes = pipeline.encode_pixels(from_pil([image], (8, 8), 1))
    assert found["codes"] == codes.tolist() and found["picture"] == rendering.data_uri(image)
    assert np.array_equal(np.asarray(read_image(found["reconstruction"])), pipeline.decode(codes)[0, 0])
    assert found["bits"] == pytest.approx(-pipeline.log_prob(codes, labels="3").bits.item(), rel=1e-5)  # batches of one
    made = client.predict(picture=found["picture"], covered=LOWER, label="3", seed=5, number=2, api_name="/complete")
    kept = np.arange(8)[:, None].repeat(8, 1) < 4
    expected = pipeline.complete([image] * 2, kept, labels="3", seed=5)
    assert np.array_equal(pixels(map(read_image, made["images"])), pixels(expected.images))


@pytest.mark.parametrize(
    "name, given, told",
    [
        ("draw", {"number": 41}, "number must be a whole number from 1 to 40, got 41"),
        ("draw", {"number": "x"}, "number must be a whole number"),
        ("draw", {"labels": "37"}, "labels must be a list of names of classes, got '37'"),
        ("draw", {"labels": ["x"]}, "there is no class 'x'"),
        ("draw", {"steps": 10**9}, "steps must be at most 1000"),
        ("draw", {"temperature": "x"}, "temperature should be a valid number"),
        ("look", {"picture": "/etc/passwd"}, "a picture must be a data URI"),
        ("look", {"picture": "data:image/png;base64,bm8="}, "the file cannot be read as a picture"),
        ("decode", {"codes": [[1]]}, "codes must be 1 to 40 lists of 16 numbers, got 1 x 1"),
        ("decode", {"codes": [["x"]]}, "codes must be lists of numbers"),
        ("decode", {"codes": [[16] * 16]}, "codes must lie in"),
        ("complete", {"picture": "DRAWN", "covered": [16]}, "places must be whole numbers from 0 to 15"),
    ],
)
def test_what_a_program_asks_wrongly_is_refused_in_words(controller, name, given, told):
    if given.get("picture") == "DRAWN":
        given = {**given, "picture": rendering.data_uri(controller.draw([3], 1, 0, {}).images[0])}
    with pytest.raises(UserError, match=re.escape(told)):
        Endpoints(controller).named[name](**given)


def test_only_a_page_over_codes_in_a_grid_completes_for_programs(pipeline):
    assert "complete" not in Endpoints(Controller(pipeline)).named


# ------------------------------------------------------------------------------------------------------------ over HTTP


@pytest.mark.parametrize(
    "host, passes",
    [
        ("127.0.0.1:7860", True),
        ("localhost:7860", True),
        ("LOCALHOST", True),
        ("[::1]:7860", True),
        ("192.168.1.5", True),
        ("digits.example.org", True),
        ("evil.example:7860", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("a b", False),
        ("[::1", False),
        ("evil.example@127.0.0.1.nip.io", False),
    ],
)
def test_the_page_is_asked_for_by_its_own_names_alone(host, passes):
    """With DNS rebinding a stranger's name resolves to this machine; a numeric address cannot be rebound."""
    guard = pytest.importorskip("smalti.pipeline.playground.guard", reason="the page needs gradio")
    refusal = guard.Guard(None, guard.own_names("127.0.0.1", ["digits.example.org"])).refusal(
        guard.Headers({"host": host})
    )
    assert (refusal is None) == passes, refusal


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"origin": "http://127.0.0.1:7860"}, None),
        ({"origin": "https://127.0.0.1:7860"}, None),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "https://localhost", "host": "localhost:443"}, None),
        ({"origin": "https://localhost:443", "host": "localhost"}, None),
        ({"origin": "https://localhost", "host": "localhost:80"}, 403),
        ({"origin": "http://localhost", "host": "LOCALHOST"}, None),
        ({"content-length": "1000000000"}, 413),
        ({"content-length": "-1"}, 413),
        ({"transfer-encoding": "chunked"}, 411),
    ],
)
def test_the_page_takes_nothing_from_other_sites_and_nothing_without_end(headers, status):
    guard = pytest.importorskip("smalti.pipeline.playground.guard", reason="the page needs gradio")
    refusal = guard.Guard(None, {"localhost"}).refusal(guard.Headers({"host": "127.0.0.1:7860"} | headers))
    assert (refusal and refusal[0]) == status


def test_whatever_is_sent_is_answered_without_a_traceback_and_the_page_lives_on(address):
    """The requests have wrong types, unknown events, invalid files, foreign names and foreign sites."""
    import httpx

    draw, pick, drop = ({"fn_index": number, "session_hash": "a"} for number in range(3))
    bodies = [
        {**draw, "data": ["x"]},
        {**draw, "data": [["zz"], "x", {}, 1, 2, 3, 4, 5, 6]},
        {**draw, "data": 5},
        [1],
        {},
        {**draw, "data": [[0], 1e9, -5, True, 1, 1, 1, 1, 1]},
        {**draw, "data": [[0], 5, "x", True, 1, 1, 1, 1, 1]},
        {**draw, "data": [None], "fn_index": 99},
        {**pick, "data": [None]},
        {**pick, "data": [None], "event_data": {"index": "x"}},
        {**drop, "data": [{"path": "/etc/passwd"}, None]},
        {**drop, "data": [{"path": 5}, None]},
        {**drop, "data": [{}] * 20},
    ]
    with httpx.Client(base_url=address, timeout=60) as visitor:
        for body in bodies * 2:
            assert visitor.post("/gradio_api/queue/join", json=body).status_code in (200, 400, 422), body
        picture = {"files": ("a.png", b"%!PS-Adobe", "image/png")}
        assert (
            visitor.post("/gradio_api/upload", files=picture, headers={"Origin": "http://evil.example"}).status_code
            == 403
        )
        assert visitor.post("/gradio_api/upload", files=picture, headers={"Host": "evil.example"}).status_code == 421
        assert visitor.post("/gradio_api/upload", files={"files": ("a.png", bytes(22 * 2**20))}).status_code == 413
        nothing = visitor.post(
            "/gradio_api/upload", content=b"nothing", headers={"Content-Type": "multipart/form-data"}
        )
        assert nothing.status_code >= 400
        with visitor.stream("GET", "/gradio_api/queue/data", params={"session_hash": "a"}) as told:
            events = [json.loads(line[5:]) for line in told.iter_lines() if line.startswith("data:")]
        assert not any(event.get("success") for event in events) and "process_completed" in {
            event["msg"] for event in events
        }
        assert visitor.get("/").status_code == 200
    log = address.log.read_text()
    assert "Traceback" not in log and "a request could not be answered: KeyError: 99" in log


@pytest.mark.parametrize("places", [[16], [-1], ["1"], None, {}, [1.5]])
def test_places_that_no_board_has_are_refused(places):
    with pytest.raises(UserError, match="whole numbers from 0 to 15"):
        grid_board.read_places(places, PLACES)


def test_nothing_covered_is_nothing_to_complete(controller):
    with pytest.raises(UserError, match="nothing is covered"):
        controller.complete(controller.pick(controller.draw([], 1, 0, {}), 0), [], None, 1, 0, {})


def test_a_histogram_of_another_codebook_is_refused(run, pipeline, tmp_path):
    folder.write_json(tmp_path / "tokenizer/histogram.json", {"counts": [[1] * 8]})
    with pytest.raises(UserError, match=r"histogram.json must count 1 x 16 codes, .*got 1 x 8"):
        code_counts_of(tmp_path, pipeline)
    assert code_counts_of(run / "pipeline", pipeline) is None


def test_a_run_a_pipeline_folder_and_the_hub_are_named(run, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "digits/pipeline")
    again = load_pipeline(str(tmp_path / "digits/pipeline"))
    assert torch.equal(again([4], seed=1).codes, pipeline([4], seed=1).codes)
    assert [name_of(str(each)) for each in (run, tmp_path / "digits/pipeline", "owner/name")] == [
        "digits",
        "digits",
        "owner/name",
    ]


def test_an_address_that_is_not_this_machines_is_refused_at_once():
    """Gradio would try a hundred of its ports, six seconds each."""
    check_address("127.0.0.1")
    with pytest.raises(UserError, match=r"cannot serve at 192.0.2.1: .*; give another --host"):
        check_address("192.0.2.1")  # reserved for documentation (RFC 5737)


def test_without_gradio_the_page_says_what_to_install(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "smalti.pipeline.playground.gradio_page", raising=False)
    with pytest.raises(UserError, match=re.escape("pip install gradio")):
        serve(Settings(run=str(run)))


def test_a_large_code_has_its_place_in_the_grid():
    drawn = rendering.code_grid(torch.tensor([[7, 65535]]))
    assert ">7</text>" in drawn and ">65535</text>" in drawn and 'viewBox="0 0 2 1"' in drawn


# ---------------------------------------------------------------------------------------------------------- in Chromium

WAIT = 20_000  # milliseconds; an idle machine needs one second


def file_of(image: PIL.Image.Image) -> bytes:
    """Return the PNG file of a picture."""
    return base64.b64decode(rendering.data_uri(image).partition(",")[2])


def read_image(uri: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def images_of(markup: str) -> list[PIL.Image.Image]:
    return [read_image(uri) for uri in re.findall(r'src="(data:image/png;base64,[^"]+)"', markup)]


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    """Serve the page, and return its address; the attribute `log` is the server's stderr."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    server = processes.command("pipeline/app.py", run)
    found = Address(server.first_line().removeprefix("the page is at "))
    assert found.startswith("http://127.0.0.1:"), server.communicate(1)
    found.log = server.stderr
    yield found
    server.kill()
    server.wait()


@pytest.fixture
def page(address, browser):  # the server first: it is forked
    """Return a new visitor's page, and check at the end that it sent requests to our server only and logged no
    error."""
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    complaints, asked = [], []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: asked.append(request.url))
    opened.set_default_timeout(WAIT)
    opened.goto(address)
    opened.wait_for_selector("#sheet figure img")
    yield opened
    opened.close()
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert complaints == []


def shown(page, selector: str) -> list[PIL.Image.Image]:
    """Return the images of the selected elements, pixel for pixel."""
    return [read_image(page_image.get_attribute("src")) for page_image in page.locator(selector).all()]


def on_screen(page, selector: str, expected: np.ndarray) -> bool:
    """Return whether the middle of each pixel of an element on the screen equals expected (H, W), once animations
    end."""
    for _ in range(50):
        screen = PIL.Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("L")
        sizes = zip(expected.shape, screen.size[::-1], strict=True)
        rows, columns = ([int((i + 0.5) * have / n) for i in range(n)] for n, have in sizes)
        if np.abs(np.asarray(screen)[np.ix_(rows, columns)].astype(int) - expected).max() <= 1:  # colours are rounded
            return True
        page.wait_for_timeout(100)
    return False


def changes(page, selector: str, act) -> None:
    """Act, and wait until an element has changed."""
    before = page.locator(selector).first.evaluate("e => e.outerHTML")
    act()
    page.wait_for_function("([s, b]) => document.querySelector(s)?.outerHTML !== b", arg=[selector, before])


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def drop(page, path: Path, name: str) -> None:
    page.set_input_files(f"#drop-{name} input[type=file]", str(path))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "gradient.png"
    PIL.Image.radial_gradient("L").resize((40, 30)).save(path)
    return path


def test_images_are_there_before_anything_is_pressed(page, pipeline):
    expected = pipeline(num_images=20, seed=0)
    assert np.array_equal(pixels(shown(page, "#sheet img")), pixels(expected.images))
    assert on_screen(page, "#sheet img", pixels(expected.images)[0])
    assert HOSTILE in page.inner_text("#sheet") and HOSTILE in page.inner_text("#classes")


def test_drawn_images_grow_on_the_screen_and_end_as_the_pipeline_draws_them(page, pipeline):
    page.evaluate("""() => {
        window.seen = [];
        const look = () => { const src = document.querySelector('#sheet img')?.src; if (src) window.seen.push(src); };
        const all = {childList: true, subtree: true, attributes: true};
        new MutationObserver(look).observe(document.querySelector('#sheet'), all);
    }""")
    for name in ("3", "7"):
        page.get_by_label(name, exact=True).check()
    page.fill("#number input[type=number]", "3")
    page.fill("#seed input", "11")
    page.click("#draw-button")
    page.wait_for_function("() => document.querySelectorAll('#sheet img').length === 3")
    expected = pipeline([3, 7], num_images=3, seed=11)
    final = rendering.data_uri(expected.images[0])
    page.wait_for_function("src => document.querySelector('#sheet img').src === src", arg=final)
    assert np.array_equal(pixels(shown(page, "#sheet img")), pixels(expected.images))
    assert page.locator("#sheet figcaption").all_inner_texts() == ["3\nseed 11", "7\nseed 12", "3\nseed 13"]
    frames = [np.asarray(read_image(uri)) for uri in page.evaluate("window.seen")]
    grey = [int((frame.reshape(4, 2, 4, 2) == growth.UNDRAWN).all((1, 3)).sum()) for frame in frames[-17:]]
    assert grey == sorted(grey, reverse=True) and len(set(grey)) > 8, grey


def test_a_dropped_picture_is_seen_as_codes_and_through_them(page, pipeline, picture):
    tab(page, "Look")
    changes(page, "#tes-image img", lambda: drop(page, picture, "look"))
    image = from_pil([PIL.Image.open(picture)], (8, 8), 1)
    codes = pipeline.encode_pixels(image)
    again = pipeline.decode(codes)
    for name, expected in (("image", image), ("again", again), ("difference", difference(image, again))):
        assert np.array_equal(shown(page, f"#tes-{name} img")[0], expected[0, 0])
    assert [int(text) for text in page.locator("#tes-codes-0 text").all_text_contents()] == codes[0].tolist()
    assert on_screen(page, "#tes-again img", again[0, 0].numpy())


def test_what_is_covered_is_drawn_anew(page, pipeline, picture):
    tab(page, "Complete")
    changes(page, "#mask .tes-board img", lambda: drop(page, picture, "complete"))
    page.wait_for_function("() => !document.querySelector('#completed figure')")  # the previous picture's
    image = PIL.Image.fromarray(from_pil([PIL.Image.open(picture)], (8, 8), 1)[0, 0].numpy())
    assert page.input_value("#label input") == "no class"
    page.click("#uncover")
    page.wait_for_function("() => !document.querySelector('#mask i.covered')")
    box = page.locator("#mask .tes-board").bounding_box()
    at = [(box["x"] + (column + 0.5) / 4 * box["width"], box["y"] + 3.5 / 4 * box["height"]) for column in range(4)]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    assert page.locator("#mask i.covered").count() == 4
    seen = np.asarray(image).repeat(2, 0).repeat(2, 1)
    seen[12:] = 205  # the blue of covered pixels, converted to grey
    assert on_screen(page, "#mask .tes-board", seen)
    page.click("#complete-button")
    page.wait_for_selector("#completed figure")
    kept = np.arange(8)[:, None].repeat(8, 1) < 6
    expected = pipeline.complete([image] * 8, kept, seed=0)
    first, *completed = shown(page, "#completed img")
    assert np.array_equal(pixels(completed), pixels(expected.images))
    assert (
        np.array_equal(np.asarray(first)[:6], np.asarray(image)[:6]) and (np.asarray(first)[6:] == growth.UNDRAWN).all()
    )


def test_a_code_is_chosen_and_painted_with(page, pipeline, controller):
    drawn = pipeline(num_images=20, seed=0)
    tab(page, "Draw")
    changes(page, "#sheet", lambda: page.locator("#sheet figure").nth(4).click())
    tab(page, "Codebook")
    page.wait_for_function(
        "src => document.querySelector('#canvas .tes-board img').src === src", arg=rendering.data_uri(drawn.images[4])
    )
    code = int(controller.codebook.page(0, True, 0)[9])
    place = next(i for i in range(PLACES) if drawn.codes[4, i] != code)
    chosen = page.locator("#codes .tes-board").bounding_box()
    columns = controller.columns(16)
    page.mouse.click(
        chosen["x"] + (9 % columns + 0.5) / columns * chosen["width"],
        chosen["y"] + (9 // columns + 0.5) / (16 / columns) * chosen["height"],
    )
    page.wait_for_function("told => document.querySelector('#code h3').innerText === told", arg=f"Code {code}")
    codes = drawn.codes[4:5].clone()
    codes[0, place] = code
    page.get_by_label("by number").check()
    tiles = rendering.patch_sheet(controller.codebook.patches(0, tuple(range(16))), columns)
    page.wait_for_function("src => document.querySelector('#codes .tes-board img').src === src", arg=tiles)
    left, across = page.locator("#codes i.chosen").evaluate("e => [e.offsetLeft, e.offsetParent.offsetWidth]")
    assert round(left / across * columns) == code % columns  # the frame follows the code to its new place
    expected = pipeline.decode(codes)[0, 0].numpy()
    box = page.locator("#canvas .tes-board").bounding_box()
    page.mouse.click(box["x"] + (place % 4 + 0.5) / 4 * box["width"], box["y"] + (place // 4 + 0.5) / 4 * box["height"])
    uri = rendering.data_uri(PIL.Image.fromarray(expected))
    page.wait_for_function("src => document.querySelector('#canvas .tes-board img').src === src", arg=uri)
    changed = (expected != np.asarray(drawn.images[4])).reshape(4, 2, 4, 2).any((1, 3))
    assert changed[place // 4, place % 4]
    changes(page, "#canvas .tes-board img", lambda: page.click("#undo"))
    assert np.array_equal(shown(page, "#canvas img")[0], np.asarray(drawn.images[4]))
    changes(page, "#canvas .tes-board img", lambda: page.click("#blank"))
    assert np.array_equal(
        shown(page, "#canvas img")[0], pipeline.decode(controller.codebook.usual.repeat(PLACES)[None])[0, 0].numpy()
    )


def saved(page, name: str) -> tuple[str, PIL.Image.Image]:
    """Press a button that saves, and return the name of the file and the picture in it."""
    with page.expect_download() as download:
        page.get_by_role("button", name=name).locator("visible=true").click()
    return download.value.suggested_filename, PIL.Image.open(download.value.path()).convert("LA")


def test_an_image_and_a_grid_of_all_are_saved_as_they_were_drawn(page, pipeline):
    expected = pixels(pipeline(num_images=20, seed=0).images)
    name, image = saved(page, "Save the chosen image")
    assert name == "digits.png" and np.array_equal(np.asarray(image)[..., 0], expected[0])
    name, grid = saved(page, "Save all as one picture")
    assert name == "digits_grid.png" and grid.size == (5 * 10 - 2, 4 * 10 - 2)  # two pixels between images of 8 x 8
    places = np.pad(np.asarray(grid), ((0, 2), (0, 2), (0, 0))).reshape(4, 10, 5, 10, 2)[:, :8, :, :8]
    assert np.array_equal(places[..., 0].swapaxes(1, 2).reshape(20, 8, 8), expected) and (places[..., 1] == 255).all()
    changes(page, "#sheet", lambda: page.click("#draw-button"))
    page.wait_for_function("() => !document.querySelector('#sheet .chosen')")
    page.get_by_role("button", name="Save the chosen image").click()
    assert page.get_by_role("button", name="Choose an image first").is_visible()


def test_an_example_is_drawn_at_a_click_and_an_example_picture_looked_at(page, pipeline, controller):
    page.get_by_role("button", name="20 of 9").click()
    final = rendering.data_uri(pipeline(["9"], num_images=1, seed=0).images[0])
    page.wait_for_function("src => document.querySelector('#sheet img').src === src", arg=final)
    tab(page, "Look")
    changes(page, "#tes-image img", lambda: page.get_by_role("button", name="stripes").click())
    assert np.array_equal(shown(page, "#tes-image img")[0], controller.example("stripes", None).image[0, 0])
    assert page.input_value("#look-label input") == "no class"


def test_nothing_of_the_page_is_wider_than_the_window(page):
    """On a phone the page was 57 pixels wider: two sliders side by side take 160 each, and its margins stayed."""
    for name in ("Draw", "Look", "Complete", "Codebook"):
        tab(page, name)
        page.wait_for_timeout(200)  # the tab fades in
        assert beyond_the_window(page) == [], name


def test_what_cannot_be_done_is_told_in_words(page, tmp_path):
    (tmp_path / "thesis.png").write_text("years of work")
    tab(page, "Look")
    drop(page, tmp_path / "thesis.png", "look")
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "cannot be read as a picture" in toast.inner_text() and "Traceback" not in toast.inner_text()
