"""Images and codes that change between a kill and the same command again, or after a training.

A training refuses them, an evaluation names the change, and a refused command writes nothing. The pictures are BMP
files: a byte of one can change while the picture stays whole. A touched file is not a changed one.
"""

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.torture.forks import Ended, Line, command, fault, poll, replaced, run, start, tiny

Change = Callable[[Path], None]
Whole = dict[Path, tuple[bytes, int]]  # each file's bytes, and when it was written
PICTURES, SAID = 60, re.compile(r"changed|are not (the|those)|other images|other codes", re.IGNORECASE)
HALVES = {  # what a killed command leaves when it has begun
    "half tokenizer": "half/tokenizer/state/step_*",
    "half prior": "later/prior/state/step_*",
    "half codes": "half/codes/*.parquet",
    "half cluster": "means/tokenizer/state/step_*",
}
GO_ON = ("half tokenizer", "half codes", "half cluster")  # of images
LOOK = ("evaluate tokenizer", "evaluate pipeline", "compress", "report")  # at images
GO_ON_FROM_CODES, LOOK_AT_CODES = ("half prior",), ("evaluate prior", "evaluate pipeline", "tune")


def pictures(folder: Path, number: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for each in range(number):
        path = folder / "ab"[each % 2] / f"{seed}-{each:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def lines() -> dict[str, Line]:
    """Return the chain over the pictures; `half` names what is killed, in runs of their own."""
    found = tiny()
    source = ["--images.source", "pictures", "--images.validation_share", 0.2]
    train, encode = [*found["tokenizer"], *source], replaced(found["encode"], "--shard_size", 40)
    return {
        "tokenizer": train,
        "encode": encode,
        "prior": found["prior"],
        "generate": found["generate"],
        "half tokenizer": replaced(replaced(train, "--run", "half"), "--steps", 4000),
        "half prior": [*replaced(replaced(found["prior"], "--run", "later"), "--steps", 4000), "--codes", "run/codes"],
        "half codes": [*replaced(replaced(encode, "--views", 9), "--shard_size", 8), "--output", "half/codes"],
        "half cluster": [*replaced(found["cluster"], "--iterations", 4000), *source],
        **{name: found[name] for name in (*LOOK, *LOOK_AT_CODES)},
    }


def prepare(folder: Path, out: Path, halves: Collection[str] = tuple(HALVES)) -> None:
    """Train the chain over the pictures, and leave a killed one of each command that is to go on."""
    shutil.rmtree(folder, ignore_errors=True)
    pictures(folder / "pictures", PICTURES, 0)
    for name in ("tokenizer", "encode", "prior", "generate"):
        ended = run(command(*lines()[name]), folder, out)
        assert ended.status == 0, f"{name}: {ended.err[-2000:]}"
    for name in halves:
        kill_half(folder, name, out)


def kill_half(folder: Path, name: str, out: Path) -> None:
    """Begin a command, and kill it as soon as it has saved something to go on with."""
    pid, began = start(command(*lines()[name]), folder, out), time.monotonic()
    while not list(folder.glob(HALVES[name])):
        ended = poll(pid, out, began)
        assert ended is None, f"{name}: {ended}"
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def a_byte(folder: Path) -> None:
    """Change one byte of one picture, with no other sign of it but the time."""
    path = sorted((folder / "pictures").rglob("*.bmp"))[-1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x80
    path.write_bytes(content)


def a_byte_of_the_same_time(folder: Path) -> None:
    path = sorted((folder / "pictures").rglob("*.bmp"))[-1]
    then = path.stat().st_mtime_ns
    a_byte(folder)
    os.utime(path, ns=(then, then))


def one_more(folder: Path) -> None:
    pictures(folder / "pictures", 2, 1)


def one_less(folder: Path) -> None:
    sorted((folder / "pictures").rglob("*.bmp"))[0].unlink()


def another_class(folder: Path) -> None:
    path = sorted((folder / "pictures/a").glob("*.bmp"))[0]
    path.rename(folder / "pictures/b" / path.name)


def others(folder: Path) -> None:
    """Put other pictures under the same names, each of the same size."""
    for path in sorted((folder / "pictures").rglob("*.bmp")):
        content = path.read_bytes()
        path.write_bytes(content[:-64] + bytes(255 - byte for byte in content[-64:]))


def touched(folder: Path) -> None:
    for path in (folder / "pictures").rglob("*.bmp"):
        os.utime(path)


def shards(folder: Path) -> dict[str, list[Path]]:
    """Return the shards of each split: commands read different ones, and each change is one of all that are read."""
    found: dict[str, list[Path]] = {}
    for path in sorted((folder / "run/codes").glob("*-of-*.parquet")):
        found.setdefault(path.name.split("-")[0], []).append(path)
    return found


def zeroed(folder: Path) -> None:
    """Set all codes to 0, in shards that say they are whole."""
    for path in chain.from_iterable(shards(folder).values()):
        table = pq.read_table(path)
        column = table.column_names.index("codes")
        zeros = pa.array([[0] * len(row) for row in table["codes"].to_pylist()], table.schema.field("codes").type)
        pq.write_table(table.set_column(column, table.schema.field("codes"), zeros), path)


def rotated(folder: Path) -> None:
    """Put the rows in another order."""
    for path in chain.from_iterable(shards(folder).values()):
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), path)


def a_shard_less(folder: Path) -> None:
    for first, *_ in shards(folder).values():
        first.unlink()


def another_tokenizer(folder: Path) -> None:
    path = folder / "run/codes/codes.json"
    said = json.loads(path.read_text())
    said["tokenizer"] = {"name": "another", "sha256": "0" * 64}
    path.write_text(json.dumps(said))


IMAGES: dict[str, Change] = {
    "a byte": a_byte,
    "a byte, at the same time": a_byte_of_the_same_time,
    "one more": one_more,
    "one less": one_less,
    "another class": another_class,
    "others": others,
}
CODES: dict[str, Change] = {
    "zeroed": zeroed,
    "in another order": rotated,
    "a shard less": a_shard_less,
    "of another tokenizer": another_tokenizer,
}


def trials() -> Iterator[tuple[str, str, Change, bool]]:
    """Yield each command with each change before it, and whether it must be refused."""
    for change, do in IMAGES.items():
        yield from ((name, change, do, True) for name in GO_ON)
        yield from ((name, change, do, False) for name in LOOK)
    for change, do in CODES.items():
        yield from ((name, change, do, True) for name in GO_ON_FROM_CODES)
        yield from ((name, change, do, False) for name in LOOK_AT_CODES)


def taken(folder: Path) -> Whole:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".log", ".lock")]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def restore(folder: Path, whole: Whole) -> None:
    """Restore a folder from the copy, times too."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in whole:
            path.unlink()
    for path, (content, then) in whole.items():
        if not path.is_file() or path.stat().st_mtime_ns != then or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(then, then))


def judged(ended: Ended, must_refuse: bool, told: str, before: Whole, after: Whole) -> Iterator[str]:
    """Yield what is wrong with a command on changed data; `told` is the text that must name the change."""
    if (said := fault(ended, *((2,) if must_refuse else (0, 2)))) is not None:
        yield said
    if ended.status == 0 and not SAID.search(told):
        yield f"the change is not said: {ended.err[-300:]}"
    if ended.status:
        written = [
            path.name
            for path in before.keys() | after.keys()
            if before.get(path, (b"",))[0] != after.get(path, (b"",))[0]
        ]
        yield from (f"{name} was written" for name in sorted(written))


def attempt(folder: Path, name: str, must_refuse: bool, out: Path) -> tuple[int, list[str]]:
    """Run a command, and return its status and what is wrong with its reaction to the change."""
    before, ended = taken(folder), run(command(*lines()[name]), folder, out)
    page = (folder / "run/report.html").read_text() if name == "report" and ended.status == 0 else ""
    return ended.status, list(judged(ended, must_refuse, ended.err + page, before, taken(folder)))


def torture(work: Path, number: int, seed: int) -> dict[str, Any]:
    folder, out, outcomes, wrong = work / "changes", work / "out/changes", Counter[str](), list[str]()
    prepare(folder, out)
    whole = taken(folder)
    chosen = list(trials())[seed % 2 :: max(1, -(-len(list(trials())) // number))]
    for name, change, do, must_refuse in chosen:
        do(folder)
        status, bad = attempt(folder, name, must_refuse, out)
        outcomes["refused" if status == 2 else "said" if not bad else "WRONG"] += 1
        wrong += [f"{name}, {change}: {each}" for each in bad]
        for each in bad:
            print(f"wrong: {name}, {change}: {each}", flush=True)
        restore(folder, whole)
    touched(folder)
    for name in ("encode", *LOOK):
        if (said := fault(run(command(*lines()[name]), folder, out), 0)) is not None:
            wrong.append(f"{name}, touched: {said}")
    return {"commands": len(chosen), "outcomes": dict(outcomes), "wrong": wrong}
