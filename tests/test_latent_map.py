"""The latent map of the page: points of held-out images, what its places decode to, and a click in a real browser."""

import math

import numpy as np
import pytest
import torch

from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float, to_pil
from smalti.common.data.run_images import open_run_images
from smalti.common.errors import UserError
from smalti.pipeline.app import latent_map_of, load_pipeline
from smalti.pipeline.playground.controller import Controller, MapController, open_controller
from smalti.pipeline.playground.latent_map import MOST, plane_of
from smalti.prior.config import FitConfig
from smalti.prior.fit import fit
from smalti.prior.simple.config import MixtureConfig
from smalti.tokenizer.encode import Settings as EncodeSettings
from smalti.tokenizer.encode import encode
from smalti.tokenizer.train import train
from smalti.tokenizer.vae.config import VAEConfig
from tests import processes
from tests.conftest import tokenizer_training
from tests.test_app import Address, images_of, page, pixels, shown, tab  # noqa: F401 - fixtures
from tests.test_vae import MLP
from tests.widths import beyond_the_window


@pytest.fixture(scope="module", params=[2, 5])
def made(request, tmp_path_factory, accelerator):
    """Return the run of a VAE of so many numbers, of random weights but for six steps."""
    return make(tmp_path_factory.mktemp("map") / "digits", request.param, accelerator)


def make(run, latent_dim, accelerator):
    train(tokenizer_training(run, model=VAEConfig(image_size=(8, 8), network=MLP, latent_dim=latent_dim)), accelerator)
    encode(EncodeSettings(run=str(run), views=1, precision="fp32"), accelerator)
    fit(FitConfig(run=str(run), model=MixtureConfig(components=1), iterations=2), accelerator)
    return run


@pytest.fixture(scope="module")
def pipeline(made):
    return load_pipeline(str(made))


@pytest.fixture(scope="module")
def controller(made, pipeline):
    return open_controller(pipeline, None, latent_map_of(made, pipeline))


def test_the_points_are_the_centres_seen_on_the_plane(made, pipeline, controller):
    split = held_out_split(open_run_images(made / "tokenizer", pipeline.tokenizer.config).splits)
    centers = pipeline.tokenizer.encode(to_float(split.read(torch.arange(len(split))).images))
    found = controller.map
    assert isinstance(controller, MapController) and len(found.points) == len(split) < MOST
    # what the plane shows of a centre is nearer to it than to the middle; of two numbers it is all
    back = found.middle + found.points @ found.plane
    away = (back - centers).square().sum() / (centers - found.middle).square().sum().clamp_min(1e-12)
    assert away < (1e-9 if centers.shape[1] == 2 else 1)
    left, right, bottom, top = found.extent
    assert left < found.points[:, 0].min() and found.points[:, 0].max() < right
    assert bottom < found.points[:, 1].min() and found.points[:, 1].max() < top


def test_the_directions_are_those_of_most_variance():
    spread = torch.tensor([0.1, 3.0, 0.2, 1.0])
    centers = 5 + spread * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    _, plane, _ = plane_of(centers)
    torch.testing.assert_close(plane.abs(), torch.eye(4)[[1, 3]], atol=0.1, rtol=0)  # an angle of 500 points
    torch.testing.assert_close(plane @ plane.T, torch.eye(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("centers", [torch.randn(9, 1), torch.randn(1, 4)])
def test_one_number_or_one_image_still_has_a_plane(centers):
    middle, plane, _ = plane_of(centers)
    assert plane.shape == (2, centers.shape[1]) and middle.isfinite().all() and plane.isfinite().all()


def test_a_place_decodes_to_what_the_pipeline_decodes_there_beside_the_nearest_image(controller, pipeline):
    board, told = controller.at(*controller.map.points[7].tolist())
    decoded, nearest = images_of(told)
    latents = controller.map.middle + controller.map.points[7] @ controller.map.plane
    assert np.array_equal(pixels([decoded]), pixels(to_pil(pipeline.decode(latents[None]))))
    assert np.array_equal(pixels([nearest]), pixels(to_pil(controller.map.images[7:8])))
    assert board["near"] == controller.map.points[7].tolist()
    assert f"class {controller.map.class_names[int(controller.map.labels[7])]}" in told


def test_a_place_beyond_the_plane_is_its_edge_and_one_that_is_no_number_is_refused(controller):
    board, _ = controller.at(1e9, -1e9)
    _, right, bottom, _ = controller.map.extent
    assert (board["right"], board["up"]) == pytest.approx((right, bottom))
    for bad in ("1", None, math.nan, [1]):
        with pytest.raises(UserError, match="a place must be two numbers"):
            controller.at(bad, 0.0)


def test_codes_have_no_map_and_vectors_without_their_images_none(finished_run, pipeline, tmp_path):
    codes = load_pipeline(str(finished_run))
    assert latent_map_of(finished_run, codes) is None and latent_map_of(tmp_path, pipeline) is None
    assert type(open_controller(pipeline, None)) is Controller


@pytest.fixture(scope="module")
def address(tmp_path_factory, accelerator):
    """Serve the page of a VAE of two numbers, and return its address."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    run = make(tmp_path_factory.mktemp("served") / "digits", 2, accelerator)
    server = processes.command("pipeline/app.py", run)
    found = Address(server.first_line().removeprefix("the page is at "))
    assert found.startswith("http://127.0.0.1:"), server.communicate(1)
    found.run = run
    yield found
    server.kill()
    server.wait()


def test_a_click_and_an_arrow_key_decode_another_place(page, address):  # noqa: F811 - the fixture
    tab(page, "Latent map")
    own = load_pipeline(str(address.run))
    expected = open_controller(own, None, latent_map_of(address.run, own))
    left, right, bottom, top = expected.map.extent
    box, told = page.locator(".tes-plane").bounding_box(), page.locator("#tes-decoded figcaption span")

    def after(act) -> str:
        """Act, and return the place that is told once it is another."""
        before = told.inner_text()
        act()
        page.wait_for_function(
            "b => document.querySelector('#tes-decoded figcaption span')?.innerText !== b", arg=before
        )
        page.wait_for_timeout(500)  # for what the lifted pointer, or the last key, still changes
        return told.inner_text()

    clicked = after(lambda: page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4))
    place = left + (right - left) / 4, top - (top - bottom) / 4
    assert [float(each) for each in clicked.removeprefix("at ").split(",")] == pytest.approx(place, abs=0.02)
    decoded = pixels(images_of(expected.at(*place)[1]))[0].astype(int)
    assert np.abs(pixels(shown(page, "#tes-decoded img"))[0].astype(int) - decoded).max() <= 3  # half a pixel away
    slider = page.locator("#plane-right input[type=range]")
    moved = after(lambda: [slider.press("ArrowRight") for _ in range(5)])
    assert float(moved.removeprefix("at ").split(",")[0]) == pytest.approx(place[0] + 0.05, abs=0.03)


def test_nothing_of_the_map_is_wider_than_the_window(page, address):  # noqa: F811 - the fixture
    tab(page, "Latent map")
    page.wait_for_timeout(200)  # the tab fades in
    assert beyond_the_window(page) == []
