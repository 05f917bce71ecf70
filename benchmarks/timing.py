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
    """Run a command unless it has ended before, and return its CPU seconds, which `ended` then holds."""
    if not ended.exists():
        print("+", *command, flush=True)
        fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | fixed)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_json(ended, {"cpu_seconds": round(cpu, 1), "wall_seconds": round(time.perf_counter() - start, 1)})
    return read_json(ended)["cpu_seconds"]


def interleaved(works: Mapping[str, Work], repeats: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of every run: each once to warm up, then all in turn, since machines drift."""

    def seconds(work: Work) -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for work in works.values():
        seconds(work)
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in works}
