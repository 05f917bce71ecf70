"""Measure bits per dimension on CIFAR-10 at doubling budgets, with the preset cifar10_bits cut to one CPU core.

    python -m benchmarks.cifar10_bits --data FOLDER --work DIR
    accelerate launch -q tokenizer/train.py configs/cifar10_bits/tokenizer.yaml  # in earnest, on a GPU; then as it says

Each budget is a run of its own, its learning rates falling to zero within it: a tokenizer of S steps and a prior of S,
on batches of 64 and 32, of images without their mirrors. The images are the first 10,000 of train (which the largest
budget sees about once), the 500 after them to choose by, and the first 1,000 of test, for evaluation would else take
longer than training. Bits per dimension are pipeline/evaluate.py's; CPU seconds are of one thread and both trainings.
The curve is over steps, a + b · S^−c by least squares. With few points it says a direction, no more. The lines to reach
are the VQ-VAE paper's
4.67 (van den Oord et al. 2017, sec. 4.1) and its VAE's 4.51.

Writes benchmarks/results/cifar10_bits.json and docs/cifar10_bits.png. The same command goes on with what is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import ROOT, once
from smalti.common.evaluation_file import read_evaluations
from smalti.common.folder import replacing, write_json
from smalti.common.record import record

SMALL = {
    "tokenizer": {
        "model.channels": ["96"],
        "model.blocks": ["2"],
        "batch_size": ["64"],
        "lr": ["2e-3"],
        "ema_decay": ["0.995"],
    },
    "prior": {
        "model.depth": ["4"],
        "model.dim": ["192"],
        "model.heads": ["6"],
        "model.dropout": ["0.0"],
        "batch_size": ["32"],
        "lr": ["6e-3"],
        "matrix_lr": ["0.03"],
        "ema_decay": ["0.995"],
    },
}
TO_REACH = {"VQ-VAE, 2017": 4.67, "its VAE": 4.51}
SEED = 0
IMAGES = {"train": 10_000, "validation": 500, "test": 1_000}


def subset(data: Path, folder: Path) -> Path:
    """Write the first images of each split as Parquet files that `datasets.load_dataset` reads."""
    from datasets import load_dataset

    if not (folder / "test.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        splits, first = load_dataset(str(data)), 0
        for name, number in IMAGES.items():
            source, begin = (splits["test"], 0) if name == "test" else (splits["train"], first)
            source.select(range(begin, begin + number)).to_parquet(folder / f"{name}.parquet")
            first += number
    return folder


def options(settings: dict[str, list[str]]) -> list[str]:
    return [word for name, values in settings.items() for word in (f"--{name}", *values)]


def budget(data: Path, run: Path, steps: int) -> dict[str, Any]:
    """Run so many steps, and return the figures and CPU seconds."""

    def schedule(total: int) -> dict[str, list[str]]:
        half, tenth = str(max(1, total // 2)), str(max(1, total // 10))
        return {"steps": [str(total)], "warmup": [tenth], "evaluate_every": [half], "save_every": [half]}

    given = ["--run", str(run), "--seed", str(SEED)]
    commands = {
        "tokenizer": [
            "tokenizer/train.py",
            "configs/cifar10_bits/tokenizer.yaml",
            "--images.source",
            str(data),
            *given,
            *options(SMALL["tokenizer"] | schedule(steps)),
        ],
        "encode": ["tokenizer/encode.py", str(run), "--views", "1"],
        "prior": [
            "prior/train.py",
            "configs/cifar10_bits/prior.yaml",
            *given,
            *options(SMALL["prior"] | schedule(steps)),
        ],
        "evaluate": ["pipeline/evaluate.py", str(run), "--images", "0"],
    }
    seconds = {
        name: once([sys.executable, *command], run / f".{name}-ended.json") for name, command in commands.items()
    }
    (figures,) = (value["figures"] for value in read_evaluations(run) if value["stage"] == "pipeline")
    return {"steps": steps, "training_cpu_seconds": seconds["tokenizer"] + seconds["prior"], **figures}


def fitted(points: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Return a + b · S^−c through the points, and the steps at which it passes each line.

    None for fewer than four points or a curve that has not bent yet: neither says where it ends.
    """
    if len(points) < 4:
        return None
    from scipy.optimize import curve_fit

    t = np.array([float(point["steps"]) for point in points])
    bits, t0 = np.array([point["learned_bits_per_dim"] for point in points]), t[0]
    bounds = ((2.0, 0.0, 0.05), (6.0, 10.0, 3.0))
    (a, b, c), _ = curve_fit(lambda t, a, b, c: a + b * (t / t0) ** -c, t, bits, p0=(3.5, 2.0, 0.5), bounds=bounds)
    if min(a - bounds[0][0], bounds[1][0] - a) < 0.01:
        return None
    found = {"a": a, "b": b, "c": c, "s0": t0}
    return found | {
        f"steps_to_{line}": float(t0 * (b / (line - a)) ** (1 / c)) for line in TO_REACH.values() if line > a
    }


def draw(points: Sequence[dict[str, Any]], fit: dict[str, float] | None, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    t = [point["steps"] for point in points]
    for name, label in (
        ("learned_bits_per_dim", "bits per dimension"),
        ("distortion", "of these the pixels, given the codes"),
    ):
        axes.plot(t, [point[name] for point in points], "o-", label=label)
    axes.plot(
        t, [point["independent_bits_per_dim"] for point in points], ".:", color="0.5", label="with independent codes"
    )
    if fit:
        far = np.geomspace(t[0], 100 * t[-1], 200)
        curve = fit["a"] + fit["b"] * (far / fit["s0"]) ** -fit["c"]
        axes.plot(far, curve, "--", color="C0", alpha=0.5, label=f"fit, towards {fit['a']:.2f}")
    for (name, line), grey in zip(TO_REACH.items(), ("0.3", "0.6"), strict=True):
        axes.axhline(line, color=grey, linewidth=0.8)
        axes.text(t[0], line + 0.02, f"{name}: {line}", fontsize=7, color=grey)
    axes.set(xscale="log", xlabel="steps of each stage, batches of 64 and 32", ylabel="bits per dimension, test")
    axes.set_title("CIFAR-10 at 16 x 16 codes of 512, a small model")
    axes.legend(fontsize=7)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 100, 200])
    args = parser.parse_args()
    points, data = [], subset(args.data.resolve(), args.work.resolve() / "images")
    for steps in args.steps:
        points.append(budget(data, args.work.resolve() / f"bits-{steps}", steps))
        fit = fitted(points)
        measured = {"protocol": __doc__, "small": SMALL, "seed": SEED, "images": IMAGES, "points": points, "fit": fit}
        result = record("benchmarks.cifar10_bits") | measured
        write_json(ROOT / "benchmarks/results/cifar10_bits.json", result)
        draw(points, fit, ROOT / "docs/cifar10_bits.png")
        print(points[-1], fit, flush=True)


if __name__ == "__main__":
    main()
