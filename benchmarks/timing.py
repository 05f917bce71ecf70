"""The time of commands and calls: CPU seconds of a process, and of calls that take turns in one process."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from smalti.common.folder import read_json, write_json

ROOT = Path(__file__).parents[1]
Work = Callable[[], object]


def once(command: Sequence[str], ended: Path) -> float:
    """Run a command unless it has ended before, and return its CPU seconds, which `ended` then holds.

    The seconds of a command that failed or was interrupted, and that now goes on, are added up in a file beside it.

    Raises:
        SystemExit: this process was killed while the command ran, so that nobody knows what it took.
    """
    if not ended.exists():
        print("+", *command, flush=True)
        part = ended.with_name(f"{ended.name}.part")
        took = read_json(part) if part.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
        if took["cpu_seconds"] is None:
            raise SystemExit(
                f"this was killed while it ran {' '.join(map(str, command))}: what that took is lost, and what is left "
                f"of it would be called the whole. Remove {ended.parent} and start again"
            )
        write_json(part, {"cpu_seconds": None, "wall_seconds": None})
        fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            subprocess.run(command, check=True, cwd=ROOT, env=os.environ | fixed)
        finally:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            wall = took["wall_seconds"] + time.perf_counter() - start
            write_json(part, {"cpu_seconds": round(took["cpu_seconds"] + cpu, 1), "wall_seconds": round(wall, 1)})
        os.replace(part, ended)
    return read_json(ended)["cpu_seconds"]


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
