"""The record that is kept with a result: date, command, commit, machine and versions."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from smalti.common.ends import pass_on

PACKAGES = ("torch", "torchvision", "accelerate", "datasets")


def record(program: str, peers: Sequence[str] = (), arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return date, command, commit, machine and versions, for a result's JSON.

    Args:
        program: a script, `prior/evaluate.py`, or a benchmark as `python -m` knows it, `benchmarks.fashion_mnist`.
        peers: packages measured beside us, whose versions belong to the result.
        arguments: of the command line, where they are not this process's.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command_without_paths(program, sys.argv[1:] if arguments is None else arguments),
        "commit": commit(),
        "machine": machine_info(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *peers)}},
    }


def command_without_paths(program: str, arguments: Sequence[str]) -> str:
    """Return the command line; of an absolute path keep only the last name, as the rest is private."""
    words = ["python", *([program] if program.endswith(".py") else ["-m", program]), *map(_without_path, arguments)]
    return shlex.join(words)


def _without_path(word: str) -> str:
    """Return a word of a command line, `/a/b` or `--name=/a/b`, with the last name of its path alone."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{option}{equals}{private(value)}"


def private(value: Any) -> Any:
    """Return settings in which absolute paths keep only their last name."""
    if isinstance(value, Mapping):
        return {key: private(each) for key, each in value.items()}
    if isinstance(value, list):
        return [private(each) for each in value]
    return f".../{Path(value).name}" if isinstance(value, str) and Path(value).is_absolute() else value


def commit() -> str | None:
    """Return the measured commit, with `-dirty` if files differ from it; None outside a checkout of our own."""
    root = Path(__file__).resolve().parents[1]
    if _git("rev-parse", "--show-toplevel") != str(root):
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def code_version() -> str:
    """Return the commit of the code that computes, or the version of an installed package."""
    return commit() or release()


def release() -> str:
    """Return the name of this package, with its version if it is installed."""
    try:
        return f"smalti {version('smalti')}"
    except PackageNotFoundError:  # run from its folder
        return "smalti"


def _git(*arguments: str) -> str | None:
    try:
        told = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError as error:
        pass_on(error)
        return None  # there is no git
    if told.returncode:
        pass_on(OSError(told.stderr))
        return None
    return told.stdout.strip()


def machine_info() -> dict[str, Any]:
    """Return CPU, the cores this process may use, memory and accelerators; never a host's name."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.system(),
    }


def cores() -> int:
    """Return how many cores this process may use; where the system does not say (macOS), how many there are."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
