"""Measure what it costs to measure a run and to pack images into bytes, beside an earlier checkout, in turns.

    python -m benchmarks.evaluating --before ../earlier --data FOLDER_OF_PARQUET --work DIR [--rounds 5] [--images 1000]
                                    [--evaluate this | none]    # evaluations take minutes, the earlier one's above all

The earlier checkout trains both stages of configs/fashion_mnist for a few steps, since what measuring takes does not
depend on how well they draw, and encodes the images; each checkout has a copy of that run. In each round every command
runs once in either, on one thread of a CPU:

    evaluate    pipeline/evaluate.py of as many images, without a cache: the classifier is trained, all is computed
    compress    pipeline/compress.py, which expands again and compares: of 64 images and of 576 (64 and `--more`), each
                less the other
    expand      pipeline/compress.py --expand of those two files, as the same checkout wrote them

Of each the CPU seconds (user and system), of these the system's, the most memory, and the ratio of CPU seconds, earlier
over this, of each round; the median counts. The figures of both evaluations stand beside each other. Writes
benchmarks/results/evaluating.json.
"""

import argparse
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.claim import Claim, verdict
from benchmarks.timing import ROOT, Spent, commit_of, spent
from smalti.common.folder import read_json
from smalti.common.record import record

RESULT = ROOT / "benchmarks/results/evaluating.json"
STEPS = 24  # of either training
FEW = 64  # images that are packed the first time
PIXELS = 28 * 28  # bytes of an image
FIGURES = "run/evaluation/pipeline-test.json"
CLAIMS = {
    "evaluate_seconds": Claim(
        text="CPU seconds of an evaluation",
        relation="at most",
        threshold=120.0,
        value=lambda ratios: ratios["evaluate_seconds"],
    ),
} | {
    what: Claim(
        text=f"CPU seconds of {called}, times less",
        relation="at least",
        threshold=threshold,
        value=lambda ratios, what=what: ratios[what],
    )
    for what, called, threshold in (
        ("evaluate", "an evaluation", 4.0),
        ("compress", "compressing", 20.0),
        ("expand", "expanding", 20.0),
    )
}


def prepare(checkouts: Mapping[str, Path], data: Path, work: Path) -> None:
    """Train and encode with the earlier checkout, unless that is done, and give each a copy of the run."""
    run, few = work / "before/run", ("--run", "run", "--steps", str(STEPS))
    if not (run / "prior/model").exists():
        shutil.rmtree(work, ignore_errors=True)
        run.parent.mkdir(parents=True)
        checkout, configs = checkouts["before"], "configs/fashion_mnist"
        given = ("--images.source", str(data))
        spent(("tokenizer/train.py", f"{configs}/tokenizer.yaml", *few, *given), checkout, run.parent)
        spent(("tokenizer/encode.py", "run"), checkout, run.parent)
        spent(("prior/train.py", f"{configs}/prior.yaml", *few), checkout, run.parent)
    for name in checkouts.keys() - {"before"}:
        shutil.rmtree(work / name, ignore_errors=True)
        shutil.copytree(run, work / name / "run")


def evaluate(images: int, checkout: Path, work: Path) -> Spent:
    for earlier in (".cache", "run/evaluation"):
        shutil.rmtree(work / earlier, ignore_errors=True)
    return spent(("pipeline/evaluate.py", "run", "--images", str(images)), checkout, work)


def compress(images: int, checkout: Path, work: Path) -> Spent:
    (work / f"{images}.tess").unlink(missing_ok=True)
    packed = ("--images", str(images), "--output", f"{images}.tess")
    return spent(("pipeline/compress.py", "run", *packed), checkout, work)


def expand(images: int, checkout: Path, work: Path) -> Spent:
    shutil.rmtree(work / "expanded", ignore_errors=True)
    return spent(("pipeline/compress.py", "run", "--expand", f"{images}.tess", "--output", "expanded"), checkout, work)


def measure(
    checkouts: Mapping[str, Path], work: Path, rounds: int, images: int, more: int, evaluating: Collection[str]
) -> dict[str, Any]:
    """Return what each command took in each round and checkout, and the ratios of CPU seconds.

    Args:
        images: that an evaluation draws.
        more: images that are packed the second time than the first.
        evaluating: the checkouts that evaluate images; all of them pack.
    """
    taken: dict[str, dict[str, list[Spent]]] = {
        what: {name: [] for name in checkouts} for what in ("evaluate", "compress", "expand")
    }
    taken["evaluate"] = {name: [] for name in evaluating}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            if name in evaluating:
                taken["evaluate"][name].append(evaluate(images, checkout, work / name))
            for packing in (compress, expand):
                few, many = (packing(number, checkout, work / name) for number in (FEW, FEW + more))
                of_more = Spent(many.cpu - few.cpu, many.system - few.system, many.bytes)
                taken[packing.__name__][name].append(of_more)
            print(name, {what: each[name][-1] for what, each in taken.items() if name in each}, flush=True)
    return {what: compared(each) for what, each in taken.items()}


def compared(taken: Mapping[str, list[Spent]]) -> dict[str, Any]:
    """Return the seconds and bytes of each round of a command, and how many times less this checkout takes."""
    found: dict[str, Any] = {"rounds": {name: [each._asdict() for each in several] for name, several in taken.items()}}
    if "before" not in taken:
        return found
    ratios = [before.cpu / this.cpu for before, this in zip(taken["before"], taken["this"], strict=True)]
    return found | {"ratios": ratios, "ratio": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the earlier checkout")
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as Parquet")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="that an evaluation draws")
    parser.add_argument("--more", type=int, default=512, help="images packed the second time: whole batches of 256")
    parser.add_argument(
        "--evaluate", choices=("both", "this", "none"), default="both", help="the checkouts that evaluate"
    )
    arguments = parser.parse_args()
    checkouts, work = {"before": arguments.before.resolve(), "this": ROOT}, arguments.work.resolve()
    written = record("benchmarks.evaluating")
    prepare(checkouts, arguments.data.resolve(), work)
    evaluating = [name for name in checkouts if arguments.evaluate in ("both", name)]
    measured = measure(checkouts, work, arguments.rounds, arguments.images, arguments.more, evaluating)
    for what in ("compress", "expand"):
        for several in measured[what]["rounds"].values():
            for each in several:
                each["kilobytes_a_second"] = arguments.more * PIXELS / 1000 / each["cpu"]
    ratios = {what: each["ratio"] for what, each in measured.items() if "ratio" in each}
    if evaluating:
        ratios["evaluate_seconds"] = median(each["cpu"] for each in measured["evaluate"]["rounds"]["this"])
    claims = [claim.judge([(ratios,)]) for name, claim in CLAIMS.items() if name in ratios]
    said = {
        **written,
        "before": commit_of(checkouts["before"]),
        "protocol": __doc__,
        "images": arguments.images,
        "packed": {"few": FEW, "more": arguments.more},
        "measured": measured,
        "figures": {name: read_json(work / name / FIGURES)["figures"] for name in evaluating},
        "claims": claims,
    }
    RESULT.write_text(json.dumps(said, indent=2) + "\n")
    print("\n".join(map(verdict, claims)))


if __name__ == "__main__":
    main()
