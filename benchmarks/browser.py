"""The graphs of pipeline/export_onnx.py in onnxruntime and in a browser, beside the model; and the model of docs/live.

    python -m benchmarks.browser runs/fashion_mnist_small

Protocol: a run whose tokenizer was trained and exported. The first 1,000 test images are encoded and decoded by torch
in fp32 on one thread, by onnxruntime, and by docs/live/onnx.js, plain JavaScript, in a headless Chromium that opens
docs/live/index.html as a file and is cut off from the network. Counted are the codes that differ and the largest
difference of a pixel in [-1, 1], each decoder given torch's codes. Milliseconds of the page are the median of one image
at once.

Writes docs/live/model.js (both graphs, each code's patch, an example of each class) and
benchmarks/results/browser.json. Needs onnxruntime, playwright and a Chromium.
"""

import argparse
import base64
import io
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from benchmarks.timing import ROOT
from smalti.common.data.pixels import to_float, to_pil, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.data.split import ImageBatch
from smalti.common.folder import replacing, write_json
from smalti.common.record import record
from smalti.pipeline.onnx_graphs import run_graph
from smalti.pipeline.reporting.codebook_section import read_histogram
from smalti.tokenizer.base import DrawsCodes, ImageTokenizer
from smalti.tokenizer.model import load_tokenizer

RESULT = ROOT / "benchmarks/results/browser.json"
LIVE = ROOT / "docs/live"
IMAGES = 1000
BATCH = 50  # images that the page is given at once
ACROSS = 16  # codes of a row of the picture of patches
IN_PAGE = """
([images, codes]) => {
  const found = {codes: [], pixels: [], encode: [], decode: []};
  images.forEach((image, i) => {
    const start = performance.now();
    found.codes.push([...state.encoder.run(Float32Array.from(image))]);
    const between = performance.now();
    found.pixels.push([...state.decoder.run(Float64Array.from(codes[i]))]);
    found.encode.push(between - start);
    found.decode.push(performance.now() - between);
  });
  return found;
}
"""


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def png_of(picture: PIL.Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return text_of(written.getvalue())


def side_by_side(images: Tensor, columns: int) -> PIL.Image.Image:
    """Return images (N, C, H, W) uint8 as one picture without gaps, row by row."""
    rows = [torch.cat(list(row), 2) for row in images.split(columns)]
    (picture,) = to_pil(torch.cat(rows, 1)[None])
    return picture


def write_model(run: Path, tokenizer: ImageTokenizer, test: ImageBatch) -> None:
    """Write docs/live/model.js."""
    assert isinstance(tokenizer, DrawsCodes)
    counts = torch.from_numpy(read_histogram(run / "tokenizer/histogram.json")[0])
    K = tokenizer.config.layout.codebook_size
    tiles = to_uint8(tokenizer.code_pictures(counts, 0, torch.arange(K)))
    of_each = [(test.labels == label).nonzero()[0, 0] for label in test.labels.unique()]
    parts = {
        "encoder": text_of((run / "onnx/encoder.onnx").read_bytes()),
        "decoder": text_of((run / "onnx/decoder.onnx").read_bytes()),
        "tiles": png_of(side_by_side(tiles, ACROSS)),
        "examples": png_of(side_by_side(test.images[torch.stack(of_each)], len(of_each))),
    }
    lines = [f'  "{name}": "{text}",\n' for name, text in parts.items()]
    about = f"// A tokenizer of {K} codes in base64, written by benchmarks/browser.py.\n"
    with replacing(LIVE / "model.js") as aside:
        aside.write_text(f'{about}var MODEL = {{\n  "across": {ACROSS},\n{"".join(lines)}}};\n', encoding="ascii")


@contextmanager
def opened() -> Iterator[Any]:
    """Yield the page in a headless Chromium without a network."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.goto((LIVE / "index.html").as_uri())
        page.wait_for_selector("body[data-ready=yes]")
        yield page
        browser.close()


def in_page(images: Tensor, codes: Tensor) -> dict[str, Any]:
    """Return codes and pixels as the page finds them, and milliseconds of each image."""
    found: dict[str, list[Any]] = {"codes": [], "pixels": [], "encode": [], "decode": []}
    with opened() as page:
        for some, which in zip(images.split(BATCH), codes.split(BATCH), strict=True):
            for name, values in page.evaluate(IN_PAGE, [some.flatten(1).tolist(), which.tolist()]).items():
                found[name] += values
    return {
        "codes": torch.tensor(found["codes"]).long(),
        "pixels": torch.from_numpy(np.array(found["pixels"], np.float32)).view(images.shape),
        "milliseconds": {name: statistics.median(found[name]) for name in ("encode", "decode")},
    }


def apart(codes: Tensor, pixels: Tensor, wanted: Tensor, images: Tensor) -> dict[str, Any]:
    """Return how far codes and pixels are from those wanted."""
    return {
        "codes_that_differ": int((codes != wanted).sum()),
        "images_with_such": int((codes != wanted).any(1).sum()),
        "largest_difference_of_a_pixel": (pixels - images).abs().max().item(),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run: Path = args.run
    tokenizer = load_tokenizer(run / "tokenizer/model")
    test = open_run_images(run / "tokenizer", tokenizer.config).splits["test"].read(torch.arange(IMAGES))
    write_model(run, tokenizer, test)
    images = to_float(test.images)
    codes = torch.cat([tokenizer.encode(some) for some in images.split(BATCH)])
    decoded = torch.cat([tokenizer.decode(some) for some in codes.split(BATCH)])
    in_runtime = run_graph(run / "onnx/encoder.onnx", {"images": images})
    pixels = run_graph(run / "onnx/decoder.onnx", {"codes": codes})
    page = in_page(images, codes)
    result = record("benchmarks.browser", peers=("onnx", "onnxruntime", "onnxscript", "playwright")) | {
        "protocol": __doc__,
        "tokenizer": tokenizer.config.model_dump(mode="json"),
        "weights": sum(each.numel() for each in tokenizer.parameters()),
        "images": IMAGES,
        "codes": codes.numel(),
        "onnxruntime": apart(in_runtime, pixels, codes, decoded),
        "page": apart(page["codes"], page["pixels"], codes, decoded) | {"milliseconds": page["milliseconds"]},
        "page_bytes": sum(path.stat().st_size for path in LIVE.iterdir()),
    }
    write_json(RESULT, result)
    print({name: result[name] for name in ("onnxruntime", "page", "page_bytes")})


if __name__ == "__main__":
    main()
