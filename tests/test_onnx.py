"""The models of a run as ONNX graphs: another runtime finds the same codes, pixels and logits, and so does the page
docs/live, in a real browser that opens it as a file, without a network."""

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.errors import UserError
from smalti.pipeline import onnx_graphs
from smalti.pipeline.export_onnx import Settings, export
from smalti.pipeline.onnx_graphs import Graph, prior_graph, run_graph, write_graph
from smalti.prior.model import load_prior
from smalti.tokenizer.model import load_tokenizer
from smalti.tokenizer.nearest import nearest_plain, nearest_tiled
from tests.test_pixelcnn import codes_of
from tests.test_pixelcnn import make as pixelcnn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROUNDING = 1e-4  # of pixels in [-1, 1] and of logits: sums of fp32 in another order
LIVE = Path(__file__).resolve().parents[1] / "docs/live"
DROP = """
([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: 'image/png'}));
  document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
}
"""
SHOWN = """
id => {
  const canvas = document.getElementById(id);
  return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
}
"""


TAKE = """
async ([encoder, decoder]) => {
  const file = (name, base64) => new File([Uint8Array.from(atob(base64), letter => letter.charCodeAt(0))], name);
  await take([file('encoder.onnx', encoder), file('decoder.onnx', decoder)]);
}
"""


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """Return a run whose graphs are exported, of one image at once."""
    path = tmp_path_factory.mktemp("onnx") / "digits"
    shutil.copytree(finished_run, path, ignore=shutil.ignore_patterns("state", "codes"))
    export(Settings(run=str(path), checked=8))
    return path


def test_encoder_decoder_and_prior_give_what_the_models_give(run):
    tokenizer, prior = load_tokenizer(run / "tokenizer/model"), load_prior(run / "prior/model")
    torch.manual_seed(0)
    images = to_float(to_uint8(torch.rand(64, 1, 8, 8) * 2 - 1))
    codes = run_graph(run / "onnx/encoder.onnx", {"images": images})
    assert torch.equal(codes, tokenizer.encode(images))
    decoded = run_graph(run / "onnx/decoder.onnx", {"codes": codes})
    assert (decoded - tokenizer.decode(codes)).abs().max() < ROUNDING
    given = {"condition": torch.arange(64) % 11, "codes": codes}  # the last class is none
    logits = run_graph(run / "onnx/prior.onnx", given)
    with torch.no_grad():
        assert (logits - prior(given["condition"], codes)).abs().max() < ROUNDING


def test_a_pipeline_that_comes_with_the_package_is_exported_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(Settings(run="digits", checked=1))
    assert {path.name for path in Path("digits-onnx").glob("*.onnx")} == {"encoder.onnx", "decoder.onnx", "prior.onnx"}
    assert json.loads(Path("digits-onnx/onnx.json").read_text())["prior_condition"]["names"] == list("0123456789")


def test_a_step_of_a_pixelcnn_gives_the_logits_of_the_model(tmp_path):
    """The Transformer's step stands in the test above."""
    prior = pixelcnn(grid=(2, 2), depth=1, factors=(5,))
    write_graph(prior_graph(prior, 3), tmp_path / "prior.onnx", "{}")
    codes, condition = codes_of(prior), torch.arange(3)  # the last class is none
    logits = run_graph(tmp_path / "prior.onnx", {"condition": condition, "codes": codes})
    with torch.no_grad():
        assert (logits - prior(condition, codes)).abs().max() < ROUNDING < logits.std()


def test_a_graph_says_what_its_codes_are_and_nothing_of_the_machine(run):
    import onnx

    for name in ("encoder", "decoder", "prior"):
        path = run / f"onnx/{name}.onnx"
        (said,) = onnx.load(path).metadata_props
        assert said.key == "smalti" and '"image_size": [8, 8]' in said.value
        assert b".py" not in path.read_bytes(), "the exporter writes the lines that it traced"


def test_of_codes_that_score_the_same_the_first_is_found_as_by_the_tiled_search():
    """Every vector of the codebook stands there three times. The search is one product, of which a graph is made."""
    torch.manual_seed(0)
    codebook = torch.randn(20, 4).repeat_interleave(3, 0) + 100  # far from the origin
    columns = torch.cat([torch.randn(2, 4, 30) + 100, codebook.T.expand(2, -1, -1)], 2)
    found = nearest_plain(columns, codebook)
    assert torch.equal(found, nearest_tiled(columns, codebook)) and (found % 3 == 0).all()


def test_the_classes_of_the_prior_are_named_beside_the_graphs(run):
    said = json.loads((run / "onnx/onnx.json").read_text())
    assert said["prior_condition"]["names"] == list("0123456789") and said["condition"]["kind"] == "nothing"


def test_the_graphs_of_another_tokenizer_are_not_replaced(run, tmp_path):
    """They were, and a prior.onnx beside them was removed."""
    others = shutil.copytree(run / "onnx", tmp_path / "others")
    said = json.loads((others / "onnx.json").read_text())
    (others / "onnx.json").write_text(json.dumps(said | {"tokenizer_sha256": "f" * 64}))
    before = {path.name: path.read_bytes() for path in others.iterdir()}
    with pytest.raises(UserError, match=r"holds the graphs of another tokenizer than .*; give another --output"):
        export(Settings(run=str(run), output=str(others)))
    assert {path.name: path.read_bytes() for path in others.iterdir()} == before


def test_what_onnx_cannot_express_is_refused_by_name(tmp_path):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"prior\.onnx: torch cannot express this model in ONNX"):
        write_graph(Graph(Branching(), {"x": torch.zeros(2)}, "y"), tmp_path / "prior.onnx", "{}")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install onnx onnxruntime onnxscript"):
        onnx_graphs.need_onnx()


# ---------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api", reason="a page needs playwright")
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """Return the page as wide as a phone, and check at the end that it asked for its own files only."""
    asked, faults = [], []
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 844})
    visited = context.new_page()
    visited.on("request", lambda request: asked.append(request.url))
    visited.on("pageerror", lambda error: faults.append(str(error)))
    visited.goto((LIVE / "index.html").as_uri())
    visited.wait_for_selector("body[data-ready=yes]")
    yield visited
    foreign = [each for each in asked if not each.startswith((LIVE.as_uri(), "blob:", "data:"))]
    assert not foreign and not faults, (foreign, faults)
    context.close()


def picture(size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Return a grey picture of random pixels, and its PNG in base64."""
    pixels, written = np.random.default_rng(0).integers(0, 256, size, np.uint8), io.BytesIO()
    PIL.Image.fromarray(pixels).save(written, "PNG")
    return pixels, base64.b64encode(written.getvalue()).decode()


def codes_on(page) -> list[int]:
    return list(map(int, page.evaluate("document.body.dataset.codes").split()))


def shown(page, canvas: str) -> np.ndarray:
    return np.array(page.evaluate(SHOWN, canvas), np.uint8).reshape(-1, 4)[:, 0]


def test_a_dropped_picture_is_encoded_painted_on_and_decoded(page):
    """Nothing is wider than a phone; a press paints the chosen code at that place alone, and another picture comes."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    before = codes_on(page)
    pixels, png = picture((28, 28))
    page.evaluate(DROP, ["mine.png", png])
    page.wait_for_function("before => document.body.dataset.codes !== before", arg=" ".join(map(str, before)))
    assert np.array_equal(shown(page, "given"), pixels.flatten()), "the picture has the size of the model's already"
    codes, decoded = codes_on(page), shown(page, "decoded")
    wanted = (codes[0] + 1) % 256
    page.locator("#palette button").nth(wanted).click()
    page.locator("#codes").click(position={"x": 5, "y": 5})
    assert codes_on(page) == [wanted, *codes[1:]]
    assert not np.array_equal(shown(page, "decoded"), decoded)
    page.click("#again")
    assert codes_on(page) == codes and np.array_equal(shown(page, "decoded"), decoded)


def test_what_is_no_picture_is_named(page):
    page.evaluate(DROP, ["mine.png", base64.b64encode(b"nothing").decode()])
    page.wait_for_function("document.querySelector('#problem').textContent")
    assert page.text_content("#problem") == "mine.png is no picture that this browser can read"


def found_by(page, image: torch.Tensor) -> tuple[list[int], np.ndarray]:
    """Return codes of an image and the pixels that they decode to, as the page computes them."""
    codes = page.evaluate("x => [...state.encoder.run(Float32Array.from(x))]", image.flatten().tolist())
    pixels = page.evaluate("x => [...state.decoder.run(Float64Array.from(x))]", codes)
    return codes, np.array(pixels)


def test_the_pages_model_gives_what_another_runtime_gives(page, tmp_path):
    for part in ("encoder", "decoder"):
        (tmp_path / part).write_bytes(base64.b64decode(page.evaluate("part => MODEL[part]", part)))
    torch.manual_seed(0)
    for image in to_float(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)):
        codes, pixels = found_by(page, image)
        assert codes == run_graph(tmp_path / "encoder", {"images": image[None]})[0].tolist()
        expected = run_graph(tmp_path / "decoder", {"codes": torch.tensor([codes])}).flatten().numpy()
        assert np.abs(pixels - expected).max() < ROUNDING


def test_a_visitors_own_tokenizer_gives_the_codes_and_pixels_of_torch(page, run):
    tokenizer = load_tokenizer(run / "tokenizer/model")
    parts = [base64.b64encode((run / f"onnx/{part}.onnx").read_bytes()).decode() for part in ("encoder", "decoder")]
    page.evaluate(TAKE, parts)
    assert page.text_content("#problem") == ""
    for image in to_float(torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)):
        codes, pixels = found_by(page, image)
        assert codes == tokenizer.encode(image[None])[0].tolist()
        expected = tokenizer.decode(torch.tensor([codes])).flatten().numpy()
        assert np.abs(pixels - expected).max() < ROUNDING


def test_the_page_is_small_and_its_model_says_what_it_is():
    assert sum(path.stat().st_size for path in LIVE.iterdir()) < 5_000_000
    import onnx

    encoder = (LIVE / "model.js").read_text().partition('"encoder": "')[2].partition('"')[0]
    (about,) = onnx.load_from_string(base64.b64decode(encoder)).metadata_props
    said = json.loads(about.value)
    assert said["image_size"] == [28, 28] and said["layout"]["grids"][0]["shape"] == [7, 7]
