"""A warm interpreter that forks: every command starts at once, so that a kill falls on its own work and not on its imports.

The child is a process like any other: it has its own session, its output in files, and dies of SIGKILL as a user's would.
"""

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import accelerate  # noqa: F401 - to be warm
import datasets
import pyarrow.parquet  # noqa: F401
import scipy.linalg  # noqa: F401
import torch
import torchmetrics  # noqa: F401
import torchvision.transforms.v2  # noqa: F401

ROOT = Path(__file__).parents[2]
Line = Sequence[Any]  # a script and its arguments


class Ended(NamedTuple):
    status: int  # as a shell tells it: 128 + the signal where one ended it
    err: str
    seconds: float
    peak: int  # bytes resident at most


def start(work: Callable[[], None], folder: Path, out: Path) -> int:
    """Fork a child that does `work` in `folder`, its output in OUT.out and OUT.err; its process id."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(out.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    status = 70
    try:
        os.chdir(folder)
        torch.set_num_threads(1)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(script: str, *arguments: object) -> Callable[[], None]:
    """A script's command line, as `python SCRIPT ARGUMENTS` would run it."""

    def work() -> None:
        sys.argv = [script, *map(str, arguments)]
        datasets.disable_progress_bars()
        runpy.run_path(str(ROOT / script), run_name="__main__")

    return work


def wait(pid: int, out: Path, seconds: float) -> Ended:
    """Wait for a child, at most so long, then kill it and all of its session."""
    began, status = time.monotonic(), None
    while time.monotonic() - began < seconds:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            break
        time.sleep(0.002)
    else:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # so early that it has no session yet
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    spent = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    err = out.with_suffix(".err").read_text(errors="replace")
    return Ended(code if code >= 0 else 128 - code, err, spent, usage.ru_maxrss * 1024)


def run(work: Callable[[], None], folder: Path, out: Path, seconds: float = 600.0) -> Ended:
    return wait(start(work, folder, out), out, seconds)


def tiny(run_folder: str = "run") -> dict[str, Line]:
    """The whole chain on the digits, in commands of seconds: each stage's command line."""
    model = ["--model.image_size", 8, 8, "--model.channels", 8, 16, "--model.patch", 1, "--images.margin", 2]
    sizes = ["--model.quantizer.codebook_size", 16, "--model.quantizer.code_dim", 4]
    often = ["--steps", 40, "--batch_size", 16, "--warmup", 4, "--save_every", 8, "--evaluate_every", 16, "--log_every", 4]
    prior = ["--model.depth", 1, "--model.dim", 16, "--model.heads", 2]
    fp32 = ["--precision", "fp32"]
    return {
        "tokenizer": ["tokenizer/train.py", "--run", run_folder, *model, *sizes, *often, *fp32],
        "encode": ["tokenizer/encode.py", run_folder, "--views", 2, "--shard_size", 200, *fp32],
        "prior": ["prior/train.py", "--run", run_folder, *prior, *often, *fp32],
        "generate": ["pipeline/generate.py", run_folder, "--num-images", 40, "--batch_size", 4],
        "generate codes": [
            "pipeline/generate.py", run_folder, "--num-images", 40, "--batch_size", 4, "--format", "codes",
            "--output", f"{run_folder}/drawn",
        ],
        "evaluate tokenizer": ["tokenizer/evaluate.py", run_folder],
        "evaluate prior": ["prior/evaluate.py", run_folder],
        "evaluate pipeline": ["pipeline/evaluate.py", run_folder, "--images", 60, "--neighbours", 10],
        "cluster": [
            "tokenizer/cluster.py", "--run", "means", "--model.image_size", 8, 8, "--model.codebook_size", 16,
            "--iterations", 8,
        ],
    }  # fmt: skip
