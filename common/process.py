"""The identity of a process: its label in the names of files it is writing, and whether it still runs."""

import os
import platform
import zlib
from pathlib import Path

import psutil


def began(pid: object) -> str | None:
    """Return when a process of this machine started, which tells it from a later one of its number; None if ended."""
    try:
        number = int(str(pid))
        if not Path("/proc/self/stat").exists():
            return f"{psutil.Process(number).create_time():.0f}"
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def label() -> str:
    """Return a label that this process alone has: machine, number and start."""
    return f"{_machine()}-{os.getpid()}-{began(os.getpid())}"


def ended(label: str) -> bool | None:
    """Return whether the process of a label has ended; None for another machine, where nobody can tell."""
    machine, pid, start = label.split("-")
    return began(pid) != start if machine == _machine() else None


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"
