"""A disk that is full at every write: the chain in a small tmpfs, which grows a little after each failed command.

Each failure must be one line and status 1, leave every file in sight whole, and the same command must go on in the
larger disk to what an undisturbed run leaves. Needs the right to mount.
"""

import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.torture.artefacts import artefacts, difference, half_written
from benchmarks.torture.forks import command, prepare, run, tiny

GROWS = (4 * 1024, 96 * 1024)  # bytes, at least and at most


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def resize(disk: Path, size: int) -> int:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
    return size


def torture(work: Path, expected: dict[str, bytes], seed: int) -> dict[str, Any]:
    disk, size, draw = work / "disk", 0, random.Random(seed)
    disk.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=0", "tmpfs", str(disk)], check=True)
    full, wrong = {}, []
    try:
        prepare(disk)
        for name, line in tiny().items():
            full[name] = 0
            size = resize(disk, used(disk) + GROWS[0])  # no command profits from the room that the one before needed
            while (ended := run(command(*line), disk, work / "out/disk")).status != 0:
                full[name] += 1
                if ended.status != 1 or not re.search("error: cannot write: .*No space left on device", ended.err):
                    wrong.append(f"{name} at {size} bytes: status {ended.status}: {ended.err[-400:]}")
                if "Traceback" in ended.err:
                    wrong.append(f"{name} at {size} bytes: a traceback")
                wrong += [f"{name} at {size} bytes: {each}" for each in half_written(disk)]
                if len(wrong) > 10:
                    return {"failures": full, "wrong": wrong}
                size = resize(disk, size + draw.randint(*GROWS))
            print(f"disk {name}: full {full[name]} times; {wrong[-2:]}", flush=True)
        wrong += [f"differs: {path}" for path in difference(expected, artefacts(disk))]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        shutil.rmtree(disk, ignore_errors=True)
    return {"failures": full, "failures_in_all": sum(full.values()), "final_bytes": size, "wrong": wrong}
