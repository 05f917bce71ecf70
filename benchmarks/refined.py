"""Draw what a run of several grids can do: samples by class, pictures refined from each grid, small ones enlarged.

    python -m benchmarks.refined RUN --samples docs/grids_samples.png --refined docs/refined.png

`RUN` has a tokenizer of several grids and a prior over them. The test images are `SHOWN` at equal distances over the
held-out split, with their own labels; everything is drawn with seed 0 at temperature 1, so that nothing is chosen. An
image is made small by averaging to half of its sides, enlarged by the pipeline, and its last grid is drawn.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.lines import save_lines
from smalti.common.data.images import held_out_split
from smalti.common.data.pixels import to_float, to_uint8
from smalti.common.data.run_images import open_run_images
from smalti.common.spacing import evenly_spaced
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.sampling_config import SamplingConfig

SHOWN = 8
LINES = 6  # of samples, where there are no classes


def samples(pipeline: ImagePipeline) -> dict[str, Tensor]:
    """Return `SHOWN` samples of each class by its name; where there are no classes, `LINES` lines of them."""
    names = pipeline.class_names
    if names is None:
        drawn = pipeline(num_images=SHOWN * LINES, seed=0, batch_size=SHOWN)
        return {f"{SHOWN * line} ...": some for line, some in enumerate(pipeline.decode(drawn.codes).split(SHOWN))}
    drawn = pipeline(labels=names, num_images_per_label=SHOWN, seed=0, batch_size=SHOWN)
    labels = torch.tensor(drawn.labels)
    return dict(zip(names, pipeline.decode(drawn.codes, labels).split(SHOWN), strict=True))


def refined(pipeline: ImagePipeline, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """Return lines of images (N, C, H, W) uint8: themselves, their coarse grids alone, refined from each, enlarged."""
    grids = len(pipeline.tokenizer.config.layout.grids)
    codes, numbers = pipeline.encode_pixels(images, labels), None if labels is None else labels.tolist()
    lines = {"test images": images}
    names = ["grid 1 alone", *(f"grids 1 to {n}" for n in range(2, grids + 1))]
    lines |= {name: pipeline.decode_coarse(codes, n + 1) for n, name in enumerate(names)}
    for first in range(grids):
        drawn = pipeline.refine(codes, first, labels=numbers, seed=0)
        lines[f"drawn from grid {first + 1} on"] = pipeline.decode(drawn.codes, labels)
    small = to_uint8(F.avg_pool2d(to_float(images), 2))
    lines["half as large"] = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    enlarged = pipeline.refine(pictures(small), grids - 1, labels=numbers, seed=0)
    lines["enlarged, last grid drawn"] = pipeline.decode(enlarged.codes, labels)
    return lines


def pictures(images: Tensor) -> list[Image.Image]:
    """Return images (N, C, H, W) uint8 as pictures, as a user has them."""
    return [Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=Path, required=True, help="picture of samples by class")
    parser.add_argument("--refined", type=Path, required=True, help="picture of test images, refined and enlarged")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = ImagePipeline.from_run(args.run, SamplingConfig())
    split = held_out_split(open_run_images(args.run / "tokenizer", pipeline.tokenizer.config).splits)
    read = split.read(evenly_spaced(SHOWN, len(split)))
    save_lines(samples(pipeline), args.samples)
    labels = read.labels if pipeline.condition.told else None
    save_lines(refined(pipeline, read.images, labels), args.refined)


if __name__ == "__main__":
    main()
