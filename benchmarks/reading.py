"""Measure how fast images are opened: decoded into memory, each file's bytes digested, and divided into splits.

    python -m benchmarks.reading --data fashion_mnist --size 28 --before ../main

A folder of PNG files of 64x64 is written into a temporary one, and --data is a folder of Parquet files. Each is opened
by this code and, with --before, by another checkout's, in turns and each time in a process of its own; imports and
finding the files are not counted. The files lie in memory already, where the system keeps them. Writes
benchmarks/results/reading.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from smalti.common.record import record

RESULT = Path(__file__).parent / "results/reading.json"
PROGRAM = """
import sys, time
from importlib import import_module
sys.path[0] = sys.argv[1]
import torch
torch.set_num_threads(1)
def found(module, name):
    for room in ("smalti.common.data.", "smalti.tokenizer.", "tokenizer."):  # where it stands, and stood
        try:
            return getattr(import_module(room + module), name)
        except ModuleNotFoundError:
            pass
    raise ModuleNotFoundError(module)
ImagesConfig = found("config", "ImagesConfig")
open_images = found("images", "open_images")
open_source = found("sources", "open_source")
config, size, channels = ImagesConfig(source=sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
open_source(config)
def times():
    return time.perf_counter(), time.process_time()
begun = times()
open_source(config)
found = times()
images = open_images(config, (size, size), channels)
done = times()
taken = [(c - b) - (b - a) for a, b, c in zip(begun, found, done)]
print(sum(map(len, images.splits.values())), *taken)
"""


def write_folder(folder: Path, number: int) -> Path:
    """Write soft colours with some noise, which compress as photographs do, in ten classes."""
    rng = np.random.default_rng(0)
    for i in range(number):
        path = folder / f"class{i % 10}/{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        soft = PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
        noise = rng.integers(-4, 5, (64, 64, 3))
        PIL.Image.fromarray((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return folder


class Rate(NamedTuple):
    """The images that one checkout opened, and their rate."""

    a_second: float
    a_processor_second: float  # whatever else the machine does


def rate(checkout: Path, source: Path, size: int, channels: int) -> Rate:
    """Return how fast a checkout opens a source."""
    arguments = [
        sys.executable,
        "-c",
        PROGRAM,
        str(checkout.resolve()),
        str(source.resolve()),
        str(size),
        str(channels),
    ]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=checkout)
    number, seconds, processor_seconds = map(float, told.stdout.split()[-3:])
    return Rate(number / seconds, number / processor_seconds)


def compare(source: Path, size: int, channels: int, checkouts: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Return of each checkout the rates of all rounds, and the median."""
    found: dict[str, list[Rate]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            found[name].append(rate(checkout, source, size, channels))
    return {
        name: {
            "median": Rate(*np.median(rates, axis=0).tolist())._asdict(),
            "rounds": [each._asdict() for each in rates],
        }
        for name, rates in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet files")
    parser.add_argument("--size", type=int, default=28, help="pixels a side of its images, which are grey")
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--pngs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    checkouts = {"this": Path(__file__).parents[1]} | ({"before": arguments.before} if arguments.before else {})
    with TemporaryDirectory() as folder:
        pngs = write_folder(Path(folder), arguments.pngs)
        figures = {
            "parquet": compare(arguments.data, arguments.size, 1, checkouts, arguments.rounds),
            "pngs": compare(pngs, 64, 3, checkouts, arguments.rounds),
        }
    RESULT.write_text(
        json.dumps({**record("benchmarks.reading"), "protocol": __doc__, "figures": figures}, indent=2) + "\n"
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
