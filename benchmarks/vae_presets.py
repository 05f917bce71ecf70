"""The VAE presets, each by its own commands: what an image costs, and what the priors draw.

    python -m benchmarks.vae_presets --work DIR --seeds 0 1 2
        --fashion_mnist_vae FOLDER_OF_PARQUET --cifar10_vae FOLDER_OF_PARQUET --frey_face FOLDER_OF_PARQUET

Figures are named by the evaluation that gives them: `tokenizer_` ones are of all test images and of reconstructions,
`pipeline_` ones of as many test images as are drawn, and of drawn images.

Protocol: a row is a folder of configs/, as it is shipped: tokenizer/train.py, encode.py, prior/fit.py, and the
evaluations of the test split. Bounds are by `draws` draws of z an image. 2,000 images are drawn from the fitted
mixture, with the labels of test, and judged by a classifier of the real images, one for all seeds; Frey's face has no
labels, nothing fitted and nothing drawn. CPU seconds are of one thread.

Writes benchmarks/results/vae_presets.json after every seed of every row; the same command goes on with what is
missing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claim import mean_and_spread
from benchmarks.timing import ROOT, once
from smalti.common.evaluation_file import read_evaluations
from smalti.common.folder import read_json, write_json
from smalti.common.record import record

RESULT = ROOT / "benchmarks/results/vae_presets.json"


class Row(NamedTuple):
    """The numbers of draws and of images by which a preset is measured."""

    draws: int  # of z for each test image
    drawn: int  # images


ROWS = {"fashion_mnist_vae": Row(16, 2000), "cifar10_vae": Row(4, 2000), "frey_face": Row(200, 0)}


def measure(preset: str, data: Path, run: Path, seed: int) -> dict[str, Any]:
    """Run a preset's commands and evaluations, and return its figures."""
    configs, given, row = f"configs/{preset}", ["--run", str(run), "--seed", str(seed)], ROWS[preset]
    draws = ["--importance_samples", str(row.draws), "--seed", str(seed)]
    commands = {
        "tokenizer": ["tokenizer/train.py", f"{configs}/tokenizer.yaml", "--images.source", str(data), *given],
        "encode": ["tokenizer/encode.py", str(run)],
        "prior": ["prior/fit.py", f"{configs}/fit.yaml", *given],
        "evaluate_tokenizer": ["tokenizer/evaluate.py", str(run), *draws],
        "evaluate_pipeline": ["pipeline/evaluate.py", str(run), "--images", str(row.drawn), *draws],
    }
    seconds = {
        f"{name}_cpu_seconds": once([sys.executable, *command], run / f".{name}-ended.json")
        for name, command in commands.items()
    }
    of_stages = {each["stage"]: numbers(each["figures"]) for each in read_evaluations(run)}
    return {f"{stage}_{name}": value for stage, found in of_stages.items() for name, value in found.items()} | seconds


def numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if type(value) in (int, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for preset in ROWS:
        parser.add_argument(f"--{preset}", type=Path, help="the folder of its images")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"rows": {}}
    result["protocol"] = __doc__
    came = record("benchmarks.vae_presets")
    for seed in args.seeds:
        for preset in ROWS:
            data, row = getattr(args, preset), result["rows"].setdefault(preset, {"draws": ROWS[preset].draws})
            by_seed = row.setdefault("seeds", {})
            if data is None or str(seed) in by_seed:
                continue
            figures = measure(preset, data.resolve(), args.work.resolve() / preset / str(seed), seed)
            print(f"{preset}, seed {seed}: {json.dumps(figures)}", flush=True)
            by_seed[str(seed)] = {"figures": figures, "record": came}
            row["summary"] = mean_and_spread([each["figures"] for each in by_seed.values()])
            write_json(RESULT, result)


if __name__ == "__main__":
    main()
