"""Too little memory and too few descriptors, from far too little to enough: every command ends well, or in one line with
status 1 or 2, leaves nothing half written, and does its work when it is given what it needs.

The limits are the kernel's: RLIMIT_AS so many MiB above what the started process has, RLIMIT_NOFILE so many descriptors above.
"""

import os
import random
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.forks import command, fault, run, tiny
from benchmarks.torture.kill import remove_written

MIB = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DESCRIPTORS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24)


def with_memory(mib: int, work: Callable[[], None]) -> Callable[[], None]:
    """The work with so much address space more than its process has when it begins."""

    def limited() -> None:
        has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (has + mib * 2**20,) * 2)
        work()

    return limited


def with_descriptors(number: int, work: Callable[[], None]) -> Callable[[], None]:
    """The work with so many descriptors more than its process has open when it begins."""

    def limited() -> None:
        open_ = max(map(int, os.listdir("/proc/self/fd")))
        while os.dup(1) <= open_:  # those between are taken too, so that none but these are left
            pass
        os.close(open_ + 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_ + number,) * 2)
        work()

    return limited


def trials() -> list[tuple[str, str, Callable[[], None]]]:
    """Every command under every limit: its name, the limit's, and the work."""
    found = []
    for name, line in tiny().items():
        found += [(name, f"{mib} MiB", with_memory(mib, command(*line))) for mib in MIB]
        found += [(name, f"{number} descriptors", with_descriptors(number, command(*line))) for number in DESCRIPTORS]
    return found


def torture(work: Path, number: int, seed: int, expected: dict[str, bytes]) -> dict[str, Any]:
    outcomes, wrong, folder = Counter[str](), list[str](), work / "limits"
    chosen = random.Random(seed).sample(trials(), min(number, len(trials())))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "reference", folder)
    for name in tiny():
        limits = [(limit, limited) for each, limit, limited in chosen if each == name]
        for limit, limited in limits:
            remove_written(folder, name)
            ended = run(limited, folder, work / "out/limits")
            outcomes["not enough" if ended.status in (1, 2) else "done" if ended.status == 0 else "WRONG"] += 1
            bad = [said for said in [fault(ended, 0, 1, 2)] if said] + half_written(folder)
            wrong += [f"{name}, {limit}: {each}" for each in bad]
            for each in bad:
                print(f"wrong: {name}, {limit}: {each}", flush=True)
        if limits and (said := fault(run(command(*tiny()[name]), folder, work / "out/limits"), 0)):
            wrong.append(f"{name}, no limit any more: {said}")
    wrong += [f"differs: {path}" for path in difference(expected, artefacts(folder))]
    return {"commands": len(chosen), "outcomes": dict(outcomes), "wrong": wrong}
