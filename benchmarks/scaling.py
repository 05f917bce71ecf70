"""Measure the cost of drawing and training as sequences, batches and datasets grow.

    python -m benchmarks.scaling --work DIR

Three series, every point in a process of its own. Drawing with the prior of 5 million weights, bf16 where the processor
computes it: over the codes an image T (batch 4) and over the batch (T = 256); seconds an image, and the memory that
drawing adds to the weights, an image. And a codes dataset of N rows of T = 64: seconds to read it, memory it adds, and
seconds a training step (batch 64). Memory is the growth of the process's peak (VmHWM). Writes the result and, as
docs/scaling.png, its plot.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smalti.common import codes
from smalti.common.codes_info import CodesInfo, TokenizerIdentity
from smalti.common.condition import Nothing
from smalti.common.layout import Layout
from smalti.common.record import record
from smalti.common.row_order import RowOrder, Share, batches
from smalti.prior.code_head import nll_each
from smalti.prior.config import PriorConfig
from smalti.prior.data import CodesRows
from smalti.prior.sampling_config import SamplingConfig
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.model import TransformerPrior

ROOT = Path(__file__).parents[1]
IDENTITY = TokenizerIdentity(name="random", sha256="0" * 64)
SERIES = {"length": (64, 256, 1024, 4096), "batch": (1, 4, 16, 64, 256), "rows": (10_000, 100_000, 1_000_000)}
K = 512
Point = dict[str, float]


def peak_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make_prior(T: int) -> TransformerPrior:
    side = round(T**0.5)
    torch.manual_seed(0)
    return TransformerPrior(
        PriorConfig(
            layout=Layout.of(side, side, factors=(K,)),
            condition=Nothing(),
            tokenizer=IDENTITY,
            architecture=TransformerConfig(preset="5m", dropout=0.0),
        )
    ).eval()


def draw(T: int, batch: int) -> Point:
    prior = make_prior(T)
    before = peak_mib()
    sampler, labels = prior.sampler(SamplingConfig(), batch), torch.zeros(batch, dtype=torch.int64)
    seconds = []
    for _ in range(1 if T * batch > 10_000 else 3):  # the long ones need no warming up
        started = time.perf_counter()
        sampler(labels, range(batch))
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds) / batch, "mib": (peak_mib() - before) / batch}


def write_codes(path: Path, rows: int) -> None:
    info = CodesInfo(
        layout=Layout.of(8, 8, factors=(K,)),
        views=1,
        condition=Nothing(),
        tokenizer=IDENTITY,
        source={"random": rows},
        shard_size=rows,
    )
    drawn = np.random.default_rng(0).integers(0, K, (rows, 64), np.uint16)
    codes.begin_codes(path, info)
    codes.write_shard(codes.shard_path(path, "train", 0, 1), info, codes.CodesSplit(drawn, None, np.arange(rows)))
    codes.finish(path, info, {"train": {"rows": rows}})


def train(path: Path) -> Point:
    before, started = peak_mib(), time.perf_counter()
    prior = make_prior(64).train()
    rows = CodesRows(codes.load_codes(path).splits["train"], prior.config)
    read, mib = time.perf_counter() - started, peak_mib() - before
    optimizer = torch.optim.AdamW(prior.parameters())
    reader, seconds = batches(rows, RowOrder(len(rows), 0, Share(batch_size=64), 0)), []
    for _ in range(5):
        started = time.perf_counter()
        batch = next(reader)
        with torch.autocast("cpu", torch.bfloat16):
            logits = prior(batch.condition, batch.codes)
        nll_each(logits, batch.codes, prior.vocabularies).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {"seconds_to_read": read, "mib": mib, "seconds": min(seconds)}


def measure(series: str, value: int, work: Path) -> Point:
    if series == "rows":
        return train(work / f"codes-{value}")
    return draw(value, 4) if series == "length" else draw(256, value)


def plot(found: dict[str, dict[int, Point]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    names = {"length": "codes an image, T", "batch": "images a batch (T = 256)", "rows": "rows of the dataset (T = 64)"}
    for column, (series, points) in enumerate(found.items()):
        rows = {"seconds an image": "seconds", "MiB an image": "mib"}
        if series == "rows":
            rows = {"seconds a training step": "seconds", "MiB in memory": "mib"}
        for row, (title, key) in enumerate(rows.items()):
            axes = figure.add_subplot(2, 3, 1 + 3 * row + column)
            axes.loglog(list(points), [point[key] for point in points.values()], marker="o")
            axes.set(xlabel=names[series], ylabel=title)
            if series == "rows" and key == "seconds":
                axes.set_ylim(points[10_000]["seconds"] / 4, points[10_000]["seconds"] * 4)
            axes.grid(alpha=0.3, which="both")
    figure.savefig(path, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--point", nargs=2, metavar=("SERIES", "VALUE"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/scaling.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/scaling.png")
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.point[0], int(arguments.point[1]), arguments.work)))
        return
    found: dict[str, dict[int, Point]] = {}
    for series, values in SERIES.items():
        found[series] = {}
        for value in values:
            if series == "rows" and not (arguments.work / f"codes-{value}").exists():
                write_codes(arguments.work / f"codes-{value}", value)
            command = [
                sys.executable,
                "-m",
                "benchmarks.scaling",
                "--work",
                str(arguments.work),
                "--point",
                series,
                str(value),
            ]
            ended = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
            found[series][value] = json.loads(ended.stdout.splitlines()[-1])
            print(series, value, found[series][value], flush=True)
    result: dict[str, Any] = {**record("benchmarks.scaling"), "protocol": __doc__, "series": found}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    plot(found, arguments.plot)


if __name__ == "__main__":
    main()
