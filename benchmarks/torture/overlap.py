"""Two commands at once, on one folder or on folders that lie in each other: there are never two writers.

The first is at work when the second begins, which must be refused, or wait and find the work done. The first ends well,
and all that is left is what it would have left alone. Locks removed by hand and other names for the same folder change
nothing.
"""

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.forks import Ended, Line, command, fault, poll, replaced, run, start, tiny
from benchmarks.torture.kill import remove_written


class Pair(NamedTuple):
    first: str  # a command of `tiny`
    second: Line
    meanwhile: Callable[[Path], None] = lambda _: None  # what the user does to the folder before the second begins


def without_locks(folder: Path) -> None:
    for path in folder.rglob("*.lock"):
        path.unlink(missing_ok=True)


TWICE = ("tokenizer", "encode", "prior", "generate", "tune", "publish", "publish codes", "cluster", "convert")


def pairs() -> dict[str, Pair]:
    lines = tiny()
    twice = {f"{name} twice": Pair(name, lines[name]) for name in TWICE}
    twice |= {
        f"{name} twice, without its lock": Pair(name, lines[name], without_locks) for name in ("tokenizer", "encode")
    }
    publish, encode = ["pipeline/publish.py", "other", "--to"], ["tokenizer/encode.py", "other", "--output"]
    generate = ["pipeline/generate.py", "other", "--num-images", 4, "--output"]
    return twice | {
        "publish over a run in training": Pair("tokenizer", [*publish, "run"]),
        "publish over a stage in training": Pair("prior", [*publish, "run/prior"]),
        "generate into a tokenizer in training": Pair("tokenizer", [*generate, "run/tokenizer"]),
        "generate into a part of it": Pair("tokenizer", [*generate, "run/tokenizer/state"]),
        "encode into a prior in training": Pair("prior", [*encode, "run/prior/model"]),
        "encode into codes being written": Pair("encode", [*encode, "run/codes"]),
        "encode over a whole run": Pair("encode", [*encode, "run"]),
        "cluster in a run in training": Pair("tokenizer", replaced(lines["cluster"], "--run", "run")),
        "a run in a tokenizer in training": Pair("tokenizer", replaced(lines["tokenizer"], "--run", "run/tokenizer")),
        "by another name": Pair("tokenizer", replaced(lines["tokenizer"], "--run", "alias")),
        "publish by another name": Pair("publish", [*lines["publish"], "--to", "alias/hub/pipeline"]),
    }


def attempt(folder: Path, pair: Pair, moment: float, out: Path) -> tuple[int, list[str]]:
    """Begin both, the second at a moment of the first; return the second's status and what went wrong with either."""
    began, ends = time.monotonic(), dict[str, Ended]()
    pids = {"first": start(command(*tiny()[pair.first]), folder, out / "first")}
    time.sleep(moment)
    pair.meanwhile(folder)
    pids["second"] = start(command(*pair.second), folder, out / "second")
    while pids.keys() > ends.keys():
        for name in pids.keys() - ends.keys():
            if (ended := poll(pids[name], out / name, began)) is not None:
                ends[name] = ended
        time.sleep(0.002)
    wrong = [said for said in (fault(ends["first"], 0), fault(ends["second"], 0, 2)) if said]
    if ends["second"].status == 0 and ends["second"].seconds < ends["first"].seconds:
        wrong.append("the second ended well while the first was writing")
    return ends["second"].status, wrong + half_written(folder)


def prepared(folder: Path, reference: Path) -> Path:
    """Make the folder anew: the finished chain, its run by a second name, and a copy for the second command to read."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reference, folder)
    shutil.copytree(reference / "run", folder / "other")
    (folder / "alias").symlink_to("run")
    return folder


def alone(folder: Path, reference: Path, name: str, out: Path) -> dict[str, bytes]:
    """Return the files after a command of `tiny` has done its work undisturbed."""
    remove_written(prepared(folder, reference), name)
    ended = run(command(*tiny()[name]), folder, out)
    assert ended.status == 0, f"{name}: {ended.err[-2000:]}"
    return artefacts(folder)


def torture(work: Path, rounds: int, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    outcomes, wrong, draw = Counter[str](), list[str](), random.Random(seed)
    folder, reference, out = work / "overlap", work / "reference", work / "out/overlap"
    expected = {name: alone(folder, reference, name, out) for name in sorted({pair.first for pair in pairs().values()})}
    for name, pair in rounds * list(pairs().items()):
        remove_written(prepared(folder, reference), pair.first)
        status, bad = attempt(folder, pair, draw.uniform(0.1, 0.6) * seconds[pair.first], out)
        bad += [f"differs: {path}" for path in difference(expected[pair.first], artefacts(folder))]
        outcomes["refused" if status == 2 else "came after" if status == 0 else "WRONG"] += 1
        wrong += [f"{name}: {each}" for each in bad]
        for each in bad:
            print(f"wrong: {name}: {each}", flush=True)
    return {"pairs": sum(outcomes.values()), "outcomes": dict(outcomes), "wrong": wrong}
