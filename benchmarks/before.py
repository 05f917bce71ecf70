"""Measure prior training, sampling and encoding beside an earlier checkout, by whole commands that take turns.

    python -m benchmarks.before --before ../earlier --work DIR

Each checkout trains a tokenizer and a prior on the digits for a few steps, with the shipped configs. Then every command
runs twice, with little and with much work, and the difference of the two in CPU seconds is the cost of the work alone:
start, imports and evaluations fall out. One thread, no accelerator, all checkouts in turn, a ratio a round. Writes
benchmarks/results/before.json.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.timing import commit_of, spent
from smalti.common.record import record

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/before.json"
AIM = 1.03  # times the CPU seconds of before, at most


class Contest(NamedTuple):
    """A command with little and with much work: what they do more is measured."""

    command: tuple[str, ...]
    little: tuple[str, ...]
    much: tuple[str, ...]
    more: int  # steps, images or codings between the two
    remove: str = ""  # folder of the run that the command must not find


CONTESTS = {
    "prior_step": Contest(
        ("prior/train.py", "configs/digits/prior.yaml", "--run", "fresh", "--codes", "run/codes"),
        ("--steps", "20"),
        ("--steps", "120"),
        100,
        remove="fresh",
    ),
    "sampled_image": Contest(
        ("pipeline/generate.py", "run", "--format", "npz", "--output", "drawn"),
        ("--num_images", "64"),
        ("--num_images", "8064"),
        8000,
        remove="drawn",
    ),
    "encoded_view": Contest(
        ("tokenizer/encode.py", "run", "--output", "coded"),
        ("--views", "2"),
        ("--views", "66"),
        64 * 1797,
        remove="coded",
    ),
}


def prepare(checkout: Path, work: Path) -> None:
    """Train both stages for a few steps, unless that is done."""
    if (work / "run/prior/model").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    few = ("--run", "run", "--steps", "30")
    shifted = ("--images.shift", "6")  # which makes 169 views of an image
    spent(("tokenizer/train.py", "configs/digits/tokenizer.yaml", *few, *shifted), checkout, work)
    spent(("tokenizer/encode.py", "run"), checkout, work)
    spent(("prior/train.py", "configs/digits/prior.yaml", *few), checkout, work)


def cost(contest: Contest, checkout: Path, work: Path) -> float:
    """Return the CPU seconds of one step, image or coding."""
    taken = []
    for amount in (contest.little, contest.much):
        shutil.rmtree(work / contest.remove, ignore_errors=True)
        taken.append(spent((*contest.command, *amount), checkout, work).cpu)
    return (taken[1] - taken[0]) / contest.more


def measure(checkouts: Mapping[str, Path], work: Path, rounds: int) -> dict[str, Any]:
    """Return the costs of each contest and checkout, and the ratios to the earlier one."""
    for name, checkout in checkouts.items():
        prepare(checkout, work / name)
    costs: dict[str, dict[str, list[float]]] = {each: {name: [] for name in checkouts} for each in CONTESTS}
    for _ in range(rounds):
        for what, contest in CONTESTS.items():
            for name, checkout in checkouts.items():
                costs[what][name].append(cost(contest, checkout, work / name))
                print(what, name, costs[what][name][-1], flush=True)
    found: dict[str, Any] = {}
    for what, several in costs.items():
        ratios = [now / then for now, then in zip(several["this"], several["before"], strict=True)]
        found[what] = {
            "cpu_seconds": several,
            "ratios": ratios,
            "ratio": median(ratios),
            "holds": median(ratios) <= AIM,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the earlier checkout")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    checkouts = {"this": ROOT, "before": arguments.before.resolve()}
    written = record("benchmarks.before")
    figures = measure(checkouts, arguments.work.resolve(), arguments.rounds)
    said = {**written, "before": commit_of(checkouts["before"]), "protocol": __doc__, "aim": AIM, "figures": figures}
    RESULT.write_text(json.dumps(said, indent=2) + "\n")
    print(json.dumps({name: each["ratio"] for name, each in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
