"""Try what must survive: kills, full disks, little memory, changed data, two commands at once, strangers, users' files.

    python -m benchmarks.torture --work DIR
    python -m benchmarks.torture --work DIR --only kill --kills 500

Writes benchmarks/results/torture.json: what was tried, how often, and everything that went wrong. Commands are those of
the README on the digits, with tiny models; each is a process, forked from an interpreter that has its imports done. The
full disk needs the right to mount a tmpfs: choose the others with --only where you have none.
"""

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.torture.kill import Reference

PARTS = ["kill", "two", "chain", "chain_of_two", "disk", "ranks", "mutate"]
PARTS += ["folders", "overlap", "limits", "changes", "strange", "heads", "page"]
Part = Callable[[], dict[str, Any]]  # tries, and returns what it found


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--kills", type=int, default=220, help="of one process, over all commands")
    parser.add_argument("--kills-of-two", type=int, default=2, help="of each command on two processes")
    parser.add_argument("--kills-of-chain", type=int, default=5, help="of pipeline/run.py")
    parser.add_argument("--inputs", type=int, default=2400, help="mutated files")
    parser.add_argument("--folders", type=int, default=130, help="commands aimed at folders of the user's")
    parser.add_argument("--overlaps", type=int, default=1, help="rounds of every pair of commands at once")
    parser.add_argument(
        "--limits", type=int, default=7, help="steps of memory, and of descriptors, from too few to enough"
    )
    parser.add_argument("--changes", type=int, default=60, help="commands after a change of images or codes")
    parser.add_argument("--strange", type=int, default=130, help="folders and tables with what is no file of theirs")
    parser.add_argument("--heads", type=int, default=400, help="forged compressed files")
    parser.add_argument("--visits", type=int, default=500, help="requests to the page")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def parts_of(args: argparse.Namespace, work: Path, undisturbed: "Reference") -> dict[str, Part]:
    """Return each part with the number of its trials."""
    from benchmarks.torture import (
        belongings,
        changes,
        disk,
        heads,
        kill,
        limits,
        mutate,
        overlap,
        ranks,
        strange,
        visitors,
    )

    return {
        "kill": lambda: kill.torture_one(work, undisturbed, args.kills, args.seed),
        "two": lambda: kill.torture_two(work, args.kills_of_two, args.seed),
        "chain": lambda: kill.torture_chain(work, args.kills_of_chain, args.seed),
        "chain_of_two": lambda: kill.torture_chain(work, args.kills_of_two, args.seed, shlex.join(kill.TWO)),
        "disk": lambda: disk.torture(work, undisturbed.whole, args.seed),
        "ranks": lambda: ranks.torture(work, 4),
        "mutate": lambda: mutate.torture(work, args.inputs, args.seed),
        "folders": lambda: belongings.torture(work, args.folders, args.seed),
        "overlap": lambda: overlap.torture(work, args.overlaps, args.seed, undisturbed.seconds),
        "limits": lambda: limits.torture(work, args.limits, undisturbed),
        "changes": lambda: changes.torture(work, args.changes, args.seed),
        "strange": lambda: strange.torture(work, args.strange, args.seed),
        "heads": lambda: heads.torture(work, args.heads, args.seed),
        "page": lambda: visitors.torture(work, args.visits, args.seed),
    }


def main() -> None:
    args = parse()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }

    # the environment decides what they import
    from benchmarks.torture import forks, kill
    from smalti.common.record import record

    path = forks.ROOT / "benchmarks/results/torture.json"
    measured = record("benchmarks.torture")
    parts = parts_of(args, work, kill.reference(work))
    try_all({name: parts[name] for name in args.only or parts}, path, {"seed": args.seed}, measured)


def try_all(parts: Mapping[str, Part], path: Path, settings: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Try each part, and at the end write into `path` what the finished parts have found.

    Only at the end: a result in the checkout makes it differ from its commit, which evaluations write into their
    figures, so these would differ from the reference.
    """
    from smalti.common.folder import read_json, write_json

    results: dict[str, Any] = {}
    try:
        for name, part in parts.items():
            began = time.monotonic()
            found = part()
            minutes = {"minutes": round((time.monotonic() - began) / 60, 1), **settings}
            results[name] = minutes | found | {"record": measured}
            print(f"{name}: {json.dumps(found)[:1000]}", flush=True)
    finally:
        before = read_json(path) if path.exists() else {}
        write_json(path, before | {"protocol": __doc__} | results)


if __name__ == "__main__":
    main()
