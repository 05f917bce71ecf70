"""Measure the cost of a margin: pictures enlarged and cropped, as `images.margin` did, against pictures as they are.

    python -m benchmarks.plain_view --cifar10 FOLDER_OF_PARQUET --work DIR --seeds 0

Two tokenizers of one config are trained for as many steps. `margin` sees what the setting showed: each picture resized
to its size and the margin, cropped at random to train on and in the middle otherwise. Such crops are written as a data
set of their own, by the reader that resized them then. On CIFAR-10, 600 steps of 64 see no picture twice, so one crop
of each is all there was; of the digits, which are seen 36 times, every crop is a row. `shift` is the shipped config.

Both are held against the pictures as they are (the digits: enlarged to their size, and no further), by the pooled PSNR
and by a classifier that was trained on pictures as they are: Fréchet distance on its features, and its accuracy. `view`
is what the tokenizer is shown, `again` what it makes of that, `margin, as it is` what the tokenizer of crops makes of
whole pictures. The floor is the distance of as many training pictures. `printed` is the PSNR against the tokenizer's
own view: what a run reports.
"""

import argparse
import io
import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from torch import Tensor

from smalti.common.config import build, read_yaml
from smalti.common.data.config import ImagesConfig
from smalti.common.data.images import ImageSet, held_out_split, open_images
from smalti.common.data.pixels import to_float, to_pil, to_uint8
from smalti.common.data.split import ImageSplit
from smalti.common.folder import read_json, write_json
from smalti.common.record import record
from smalti.metrics.classifier import Classifier, load_or_train
from smalti.metrics.distances import frechet_distance
from smalti.metrics.features_config import Recipe
from smalti.metrics.similarity import psnr_of, squared_error_each
from smalti.tokenizer.base import ImageTokenizer
from smalti.tokenizer.labelled import labelled
from smalti.tokenizer.model import load_tokenizer

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/plain_view.json"
PART = 500  # images
Figures = dict[str, Any]


class Case(NamedTuple):
    """A shipped config, and what its margin was."""

    config: str
    size: tuple[int, int]
    channels: int
    margin: int
    crops: int  # of each training picture, of the (margin + 1)² there are
    images: Mapping[str, Any]  # settings beside the source
    mirror: bool  # a mirrored picture is as good to the classifier


CASES = {
    "cifar10": Case("imagefolder_small", (32, 32), 3, 2, 1, {}, True),
    "digits": Case("digits", (16, 16), 1, 1, 4, {"validation_share": 0.1}, False),
}


def opened(case: Case, source: str, beyond: int = 0) -> ImageSet:
    """Return the pictures, read at their size or so many pixels beyond it."""
    height, width = case.size
    config = build(ImagesConfig, {"source": source, **case.images}, "images")
    return open_images(config, (height + beyond, width + beyond), case.channels)


def cropped(split: ImageSplit, case: Case, crops: int) -> Dataset:
    """Return so many random crops of each picture of a split, or for 0 the one in the middle."""
    height, width = case.size
    generator = torch.Generator().manual_seed(0)
    places = list(itertools.product(range(case.margin + 1), repeat=2))
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    for positions in torch.arange(len(split)).split(PART):
        batch = split.read(positions)
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            chosen = torch.randperm(len(places), generator=generator)[:crops].tolist()
            for top, left in [places[i] for i in chosen] or [(case.margin // 2, case.margin // 2)]:
                file = io.BytesIO()
                to_pil(image[None, :, top : top + height, left : left + width])[0].save(file, "PNG")
                columns["image"].append({"bytes": file.getvalue(), "path": None})
                columns["label"].append(label)
    kinds = {"image": Image(), "label": ClassLabel(num_classes=1 + int(split.labels.max()))}
    return Dataset.from_dict(columns, Features(kinds))


def write_crops(case: Case, source: str, folder: Path) -> None:
    """Write the crops that the margin showed as Parquet."""
    for name, split in opened(case, source, case.margin).splits.items():
        folder.mkdir(parents=True, exist_ok=True)
        rows = cropped(split, case, case.crops if name == "train" else 0)
        DatasetDict({name: rows})[name].to_parquet(folder / f"{name}.parquet")


def train(case: Case, run: Path, source: str, shift: int, seed: int) -> ImageTokenizer:
    """Return the shipped config's tokenizer, and train it first where it is missing."""
    if not (run / "tokenizer/model").exists() or not (run / "done").exists():
        options = ["--run", run, "--images.source", source, "--images.shift", shift, "--seed", seed]
        command = ["tokenizer/train.py", f"configs/{case.config}/tokenizer.yaml", *map(str, options)]
        print("+", *command, flush=True)
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
        (run / "done").touch()
    return load_tokenizer(run / "tokenizer/model").eval()


def whole(split: ImageSplit, positions: Tensor | None = None) -> Tensor:
    """Return the images (N, C, H, W) of a split, or those at some positions."""
    positions = torch.arange(len(split)) if positions is None else positions
    return torch.cat([split.read(some).images for some in positions.split(PART)])


@torch.inference_mode()
def again(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Return the reconstructions of images (N, C, H, W)."""
    return torch.cat([to_uint8(tokenizer.decode(tokenizer.encode(to_float(some)))) for some in images.split(PART)])


def measure(case: Case, source: str, work: Path, seed: int) -> Figures:
    """Train both, and return their figures."""
    crops = work / "crops"
    if not (crops / "train.parquet").exists():
        write_crops(case, source, crops)
    shipped = read_yaml(ROOT / f"configs/{case.config}/tokenizer.yaml")["images"]["shift"]
    with_margin = train(case, work / f"margin-{seed}", str(crops), 0, seed)
    with_shift = train(case, work / f"shift-{seed}", source, shipped, seed)

    images = opened(case, source)
    split = held_out_split(images.splits)
    recipe = Recipe(mirror=case.mirror, seed=seed)
    known, test = labelled(images.splits["train"]), labelled(split)
    judge = load_or_train(known, test, images.fingerprint, work, recipe)
    originals, seen = whole(split), whole(held_out_split(opened(case, str(crops)).splits))
    some = torch.arange(len(split)) * len(images.splits["train"]) // len(split)
    labels = torch.from_numpy(split.labels)
    features, floor = judge.features(originals), judge.features(whole(images.splits["train"], some))
    shown = {
        "margin": (seen, seen),
        "margin, again": (again(with_margin, seen), seen),
        "margin, as it is, again": (again(with_margin, originals), originals),
        "shift": (originals, originals),
        "shift, again": (again(with_shift, originals), originals),
    }
    return {
        "images": len(split),
        "judge_accuracy": judge.agreement(originals, labels),
        "floor": frechet_distance(features, floor),
        "rows": {name: figures(judge, *pair, originals, features, labels) for name, pair in shown.items()},
    }


def figures(
    judge: Classifier, images: Tensor, view: Tensor, originals: Tensor, features: Tensor, labels: Tensor
) -> Figures:
    """Return distances of images to the originals, by the judge and in pixels, and to the view they were made of."""
    return {
        "fd": frechet_distance(features, judge.features(images)),
        "accuracy": judge.agreement(images, labels),
        "psnr_pooled": psnr_of(squared_error_each(images, originals).mean()).item(),
        "printed": psnr_of(squared_error_each(images, view).mean()).item(),
    }


def print_table(name: str, found: Figures) -> None:
    print(
        f"\n{name}: {found['images']} images, floor {found['floor']:.2f}, the judge knows {found['judge_accuracy']:.1%}"
    )
    for row, each in found["rows"].items():
        print(
            f"{row:24} distance {each['fd']:6.2f}  PSNR {each['psnr_pooled']:6.2f}  printed {each['printed']:6.2f}  "
            f"accuracy {each['accuracy']:.1%}"
        )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="its folder of Parquet files; without it the digits alone are measured")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args(argv)
    sources = {"digits": "digits"} | ({"cifar10": str(Path(arguments.cifar10).resolve())} if arguments.cifar10 else {})
    result: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {"protocol": __doc__, "sets": {}}
    for seed in arguments.seeds:
        for name, source in sources.items():
            by_seed = result["sets"].setdefault(name, {})
            if str(seed) not in by_seed:
                found = measure(CASES[name], source, (arguments.work / name).resolve(), seed)
                by_seed[str(seed)] = {"figures": found, "record": record("benchmarks.plain_view", (), argv)}
                write_json(arguments.out, result)
            print_table(f"{name}, seed {seed}", by_seed[str(seed)]["figures"])


if __name__ == "__main__":
    main(sys.argv[1:])
