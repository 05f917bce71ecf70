"""Too little memory and too few descriptors, from far too little to enough.

Every command ends well, or in one line with status 1 or 2, leaves nothing half written, and does its work once it has
what it needs. A command that ends well under any limit has made what an undisturbed one makes: a page without its
pictures is wrong.

The limits are the kernel's: RLIMIT_AS so many MiB above what the started process has, RLIMIT_NOFILE so many descriptors
above.
"""

import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.forks import command, fault, prepare, run, tiny
from benchmarks.torture.kill import Reference, remove_written

MIB = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DESCRIPTORS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24)  # with none Python cannot even open the script


def with_memory(mib: int, work: Callable[[], None]) -> Callable[[], None]:
    """Return the work with so much more address space than its process has when it begins."""

    def limited() -> None:
        has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (has + mib * 2**20,) * 2)
        work()

    return limited


def with_descriptors(number: int, work: Callable[[], None]) -> Callable[[], None]:
    """Return the work with so many more descriptors than its process has open when it begins."""

    def limited() -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while (
            last := os.open(os.devnull, os.O_RDONLY)
        ) < highest:  # the limit is one of numbers: those below are taken
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + number,) * 2)
        work()

    return limited


def steps(all_of_them: tuple[int, ...], number: int) -> list[int]:
    """Return so many of the steps, evenly spaced, the first and the last among them."""
    return [all_of_them[place * (len(all_of_them) - 1) // max(1, number - 1)] for place in range(number)]


def torture(work: Path, number: int, undisturbed: Reference) -> dict[str, Any]:
    """Run each command of the chain under rising limits until it has enough, and at last under none."""
    outcomes, wrong, folder, out = Counter[str](), list[str](), work / "limits", work / "out/limits"
    shutil.rmtree(folder, ignore_errors=True)
    prepare(folder)
    for name, line in tiny().items():
        limits = [
            {f"{mib} MiB": with_memory(mib, command(*line)) for mib in steps(MIB, number)},
            {f"{each} descriptors": with_descriptors(each, command(*line)) for each in steps(DESCRIPTORS, number)},
        ]
        made = undisturbed.after[name]
        for limit, status, bad in chain.from_iterable(rising(folder, name, limited, made, out) for limited in limits):
            outcomes["not enough" if status in (1, 2) else "done" if status == 0 else "WRONG"] += 1
            wrong += [f"{name}, {limit}: {each}" for each in bad]
            for each in bad:
                print(f"wrong: {name}, {limit}: {each}", flush=True)
        if said := fault(run(command(*line), folder, out), 0):
            wrong.append(f"{name}, no limit any more: {said}")
    wrong += [f"differs: {path}" for path in difference(undisturbed.whole, artefacts(folder))]
    return {"commands": sum(outcomes.values()), "outcomes": dict(outcomes), "wrong": wrong}


def rising(
    folder: Path, name: str, limited: Mapping[str, Callable[[], None]], made: dict[str, bytes], out: Path
) -> Iterator[tuple[str, int, list[str]]]:
    """Run a command under one limit after the other until it succeeds, and then remove what it made.

    Yields each limit, the status, and what is wrong with its end and with what it made.
    """
    for limit, work in limited.items():
        ended = run(work, folder, out)
        bad = [said for said in [fault(ended, 0, 1, 2)] if said] + half_written(folder)
        if ended.status == 0:
            bad += [f"differs: {path}" for path in difference(made, artefacts(folder))]
        yield limit, ended.status, bad
        if ended.status == 0:
            break
    remove_written(folder, name)
