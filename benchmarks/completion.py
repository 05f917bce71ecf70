"""Compare completions by a prior of raster order and by one of any order, both trained equally long.

    python -m benchmarks.completion --fashion_mnist FOLDER --cifar10 FOLDER --work DIR --seeds 0 1 2

Trains on each set one tokenizer, and for every seed two priors of the same size, steps, batch and learning rates over
its codes, one with `order: raster` and one with `order: any`. Of the codes of the test split's first 2,000 images a
part is given and the rest scored: nats per unknown code, with the class. The raster prior conditions each unknown code
on the codes before it; the other on all that is known. For upper halves the two condition on the same.

Writes the result and, for the first seed, a picture of each set: test images, what is kept of them, and what either
prior draws for the rest (codes of the kept part have seen no other pixel). After an interruption the same command goes
on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor

from benchmarks.claim import mean_and_spread
from smalti.common import codes
from smalti.common.codes import CodesSplit
from smalti.common.codes_info import CodesInfo
from smalti.common.data.pixels import from_pil, to_pil
from smalti.common.plots import image_grid, save_picture
from smalti.common.record import record
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.autoregressive import AutoregressivePrior
from smalti.prior.model import load_prior
from smalti.prior.sampling_config import SamplingConfig

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/completion.json"
ORDERS = ("raster", "any")
SCORED = 2000  # images of the test split
# The shipped configs, cut to what two CPU cores train in minutes.
TOKENIZER: dict[str, list[str]] = {
    "fashion_mnist": [],
    "cifar10": [
        *("--model.channels", "32", "64", "--model.blocks", "1", "--model.quantizer.codebook_size", "512"),
        *("--encode.views", "1", "--steps", "600", "--batch_size", "64", "--lr", "2e-3", "--warmup", "50"),
        *("--ema_decay", "0.99", "--evaluate_every", "300", "--save_every", "300"),
    ],
}
PRIOR = [
    *("--model.depth", "4", "--model.dim", "160", "--model.heads", "4", "--model.dropout", "0"),
    *("--steps", "800", "--batch_size", "64", "--lr", "6e-3"),
    *("--matrix_lr", "0.03", "--warmup", "100", "--weight_decay", "0.05", "--ema_decay", "0.995"),
    *("--log_every", "20", "--evaluate_every", "400", "--save_every", "400"),
]
Figures = dict[str, Any]


def masks(h: int, w: int) -> dict[str, Tensor]:
    """Return the known parts of a grid, (h, w) bool each."""
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centre = (row >= h // 4) & (row < h - h // 4) & (column >= w // 4) & (column < w - w // 4)
    scattered = torch.rand(h, w, generator=torch.Generator().manual_seed(0)) < 0.5
    return {
        "upper half": row < h // 2,
        "lower half": row >= h - h // 2,
        "left half": column < w // 2,
        "all but the centre": ~centre,
        "half of the places at random": scattered,
    }


def run_once(command: Sequence[str], made: Path) -> None:
    if not made.exists():
        print("+", *command, flush=True)
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def train(name: str, data: Path, work: Path, seeds: Sequence[int]) -> None:
    configs, first = f"configs/{name}", work / name
    tokenizer = ["tokenizer/train.py", f"{configs}/tokenizer.yaml", "--run", str(first), "--images.source", str(data)]
    run_once([*tokenizer, *TOKENIZER[name]], first / "codes/codes.json")
    run_once(["tokenizer/encode.py", str(first)], first / "codes/codes.json")
    for seed in seeds:
        for order in ORDERS:
            run = work / f"{name}-{order}-{seed}"
            prior = ["prior/train.py", f"{configs}/prior.yaml", "--run", str(run), "--codes", str(first / "codes")]
            run_once([*prior, *PRIOR, "--order", order, "--seed", str(seed)], run / "prior/figures.json")


def _transformer(run: Path) -> AutoregressivePrior:
    prior = load_prior(run / "prior/model")
    assert isinstance(prior, AutoregressivePrior)  # as the configs say
    return prior


@torch.inference_mode()
def score(prior: AutoregressivePrior, info: CodesInfo, split: CodesSplit) -> Figures:
    """Return nats per unknown code of a split, for each mask and with nothing known."""
    assert split.condition is not None  # the sets of this claim have classes
    labels, found = torch.from_numpy(split.condition[:SCORED]), {}
    rows, (grid,) = torch.from_numpy(split.codes[:SCORED].astype("int64")), (each.shape for each in info.layout.grids)
    for name, mask in {"nothing": torch.zeros(grid, dtype=torch.bool), **masks(*grid)}.items():
        known, total = mask.flatten(), 0.0
        for some in torch.arange(len(rows)).split(500):
            given = known.expand(len(some), -1) if name != "nothing" else None
            total -= prior.log_prob(rows[some], labels[some], given).sum().item()
        found[name] = total / (len(rows) * int((~known).sum()) * info.layout.depth)
    return found


def draw_picture(name: str, data: Path, work: Path, seed: int, path: Path) -> None:
    """Draw ten test images, one a class; for each mask what is kept, and the rest as either prior draws it."""
    first, split = work / name, load_dataset(str(data))["test"]
    labels = split["label"][:]
    chosen = [labels.index(number) for number in sorted(set(labels))]
    pictures = [split[row]["image"] for row in chosen]
    pipelines = {
        order: ImagePipeline.from_models(
            first / "tokenizer/model", work / f"{name}-{order}-{seed}/prior/model", SamplingConfig()
        )
        for order in ORDERS
    }
    c = pipelines["any"].tokenizer.config
    (grid,) = (each.shape for each in c.layout.grids)
    whole = from_pil(pictures, c.image_size, c.image_channels)
    rows = [whole]
    for mask_name in ("upper half", "lower half", "all but the centre"):
        mask = masks(*grid)[mask_name]
        pixels = mask.repeat_interleave(c.image_size[0] // grid[0], 0).repeat_interleave(c.image_size[1] // grid[1], 1)
        rows.append(torch.where(pixels, whole, 128))
        for order in ORDERS:
            if order == "any" or mask_name == "upper half":
                drawn = pipelines[order].complete(to_pil(whole), pixels, labels=list(range(len(chosen))), seed=0)
                rows.append(from_pil(drawn.images, c.image_size, c.image_channels))
    save_picture(image_grid(torch.cat(rows), len(chosen)), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion_mnist", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    sets = {name: getattr(arguments, name) for name in TOKENIZER if getattr(arguments, name)}
    by_set: Figures = {}
    result: Figures = {**record("benchmarks.completion"), "protocol": __doc__, "nats_per_unknown_code": by_set}
    for name, data in sets.items():
        train(name, data.resolve(), arguments.work.resolve(), arguments.seeds)
        info, splits = codes.load_codes(arguments.work / name / "codes", ["test"])
        of_order: Figures = {}
        for order in ORDERS:
            runs = [arguments.work / f"{name}-{order}-{seed}" for seed in arguments.seeds]
            per_seed = [score(_transformer(run), info, splits["test"]) for run in runs]
            of_order[order] = {"summary": mean_and_spread(per_seed), "per_seed": per_seed}
        by_set[name] = of_order
        draw_picture(name, data, arguments.work, arguments.seeds[0], arguments.pictures / f"completion_{name}.png")
        for mask in masks(*info.layout.grids[0].shape):
            print(
                name,
                mask,
                *(f"{order}: {of_order[order]['summary'][mask]['mean']:.3f}" for order in ORDERS),
                flush=True,
            )
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
