"""The time of commands and calls: CPU seconds of a process, and of calls that take turns in one process."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from smalti.common.folder import read_json, write_json
from smalti.common.record import commit

ROOT = Path(__file__).parents[1]
Work = Callable[[], object]
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}  # one thread of a CPU


class Spent(NamedTuple):
    """The processor time and the memory of a command."""

    cpu: float  # seconds of the processor, user's and system's
    system: float  # of these the system's
    bytes: int  # of memory at most


def spent(command: Sequence[str], checkout: Path, work: Path) -> Spent:
    """Run a script of a checkout in the folder `work`; arguments that begin with configs/ are the checkout's."""
    script, *given = command
    arguments = [str(checkout / each) if each.startswith("configs/") else each for each in given]
    running = subprocess.Popen(
        [sys.executable, str(checkout / script), *arguments],
        cwd=work,
        env=os.environ | ALONE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, running.args)
    return Spent(usage.ru_utime + usage.ru_stime, usage.ru_stime, 1024 * usage.ru_maxrss)


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def once(command: Sequence[str], ended: Path) -> float:
    """Run a command unless it has ended before, and return its CPU seconds, which `ended` then holds.

    It also holds the command's words and the commit. The seconds of a command that failed or was interrupted, and that
    now goes on, are added up in a file beside it.

    Raises:
        SystemExit: this process was killed while the command ran, so that nobody knows what it took; or another command
            has ended there, as one with other settings, whose figures would be taken for this one's.
    """
    words = [str(word) for word in command[1:]]  # without the interpreter
    if ended.exists() and (there := read_json(ended).get("command", words)) != words:
        raise SystemExit(
            f"{ended.parent} holds the results of another command: {' '.join(there)}. Remove it, or take another "
            f"--work, for {' '.join(words)}"
        )
    if not ended.exists():
        print("+", *command, flush=True)
        part = ended.with_name(f"{ended.name}.part")
        took = read_json(part) if part.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
        if took["cpu_seconds"] is None:
            raise SystemExit(
                f"this was killed while it ran {' '.join(map(str, command))}: what that took is lost, and what is left "
                f"of it would be called the whole. Remove {ended.parent} and start again"
            )
        ran = {"command": words, "commit": commit()}  # before it runs: a checkout may move meanwhile
        write_json(part, {"cpu_seconds": None, "wall_seconds": None})
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            subprocess.run(command, check=True, cwd=ROOT, env=os.environ | ALONE)
        finally:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            wall = took["wall_seconds"] + time.perf_counter() - start
            write_json(part, {"cpu_seconds": round(took["cpu_seconds"] + cpu, 1), "wall_seconds": round(wall, 1)})
        write_json(part, read_json(part) | ran)
        os.replace(part, ended)
    return read_json(ended)["cpu_seconds"]


def commits_of(ended: Iterable[Path]) -> list[str]:
    """Return the commits at which commands ran, by the files that `once` wrote; those of earlier versions name none."""
    return sorted({found for path in ended if (found := read_json(path).get("commit")) is not None})


def interleaved(
    works: Mapping[str, Work], repeats: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every run: each once to warm up, then all in turn, since machines drift.

    Args:
        clock: `time.process_time` counts the processor's seconds, which others at work on a core do not lengthen.
    """

    def seconds(work: Work) -> float:
        start = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    for work in works.values():
        seconds(work)
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in works}
