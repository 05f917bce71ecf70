"""A warm interpreter that forks: every command starts at once, so a kill hits its own work and not its imports.

The child is a process like any other: it has its own session, its output in files, and dies of SIGKILL as a user's
would.
"""

import os
import re
import resource
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

from smalti.tokenizer.vqgan.config import VQGANConfig
from smalti.tokenizer.vqgan.model import VQGANTokenizer
from smalti.tokenizer.vqgan.published import checkpoint_places

ROOT = Path(__file__).parents[2]
CHECKPOINT = "last.ckpt"
Line = Sequence[Any]  # a script and its arguments


class Ended(NamedTuple):
    status: int  # as a shell tells it: 128 + the signal where one ended it
    err: str
    seconds: float
    peak: int  # bytes resident at most


def start(work: Callable[[], None], folder: Path, out: Path) -> int:
    """Fork a child that does `work` in `folder`, its output in OUT.out and OUT.err, and return its process id."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        out.with_suffix(f".{name}").write_bytes(
            b""
        )  # here: whoever waits for a word in it is not to find that of another
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(out.with_suffix(f".{name}"), os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", 1, closefd=False)  # noqa: SIM115 - pytest puts its own there
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
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
    """Return a script's call, as `python SCRIPT ARGUMENTS` would run it."""

    def work() -> None:
        sys.argv = [script, *map(str, arguments)]
        datasets.disable_progress_bars()
        runpy.run_path(str(ROOT / script), run_name="__main__")

    return work


def poll(pid: int, out: Path, began: float) -> Ended | None:
    """Return how a child has ended, or None while it is at work."""
    found, status, usage = os.wait4(pid, os.WNOHANG)
    return _ended(status, usage, out, began) if found else None


def wait(pid: int, out: Path, seconds: float) -> Ended:
    """Wait for a child, at most so long, then kill it and all of its session."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if (found := poll(pid, out, began)) is not None:
            return found
        time.sleep(0.002)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # so early that it has no session yet
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return _ended(status, usage, out, began)


def _ended(status: int, usage: resource.struct_rusage, out: Path, began: float) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    err = out.with_suffix(".err").read_text(errors="replace")
    return Ended(code if code >= 0 else 128 - code, err, time.monotonic() - began, usage.ru_maxrss * 1024)


def run(work: Callable[[], None], folder: Path, out: Path, seconds: float = 600.0) -> Ended:
    return wait(start(work, folder, out), out, seconds)


def resident() -> int:
    """Return the bytes that this process has resident, and so each child at its beginning."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fault(ended: Ended, *statuses: int) -> str | None:
    """Return what is wrong with an end, or None: another status, a traceback, no line that says why, or several."""
    said = " ".join(ended.err.split())[-300:]
    if ended.status not in statuses:
        return f"status {ended.status} after {ended.seconds:.0f} s: {said}"
    if "Traceback" in ended.err:
        return f"a traceback: {said}"
    errors = sum(line.startswith(("error:", "interrupted")) for line in re.split(r"[\r\n]", ended.err))
    return f"{errors} lines say why: {said}" if ended.status and errors != 1 else None


# options of the smallest chain: models of 16 codes, and trainings of seconds
TINY_TOKENIZER = "--model.image_size 8 8 --model.channels 8 16 --model.patch 1 --images.shift 1"
TINY_QUANTIZER = "--model.quantizer.codebook_size 16 --model.quantizer.code_dim 4"
TINY_PRIOR = "--model.depth 1 --model.dim 16 --model.heads 2"
TINY_TRAINING = "--steps 40 --batch_size 16 --warmup 4 --save_every 8 --evaluate_every 16 --log_every 4"


def tiny(run_folder: str = "run") -> dict[str, Line]:
    """Return each stage's command line: the whole chain on the digits, in commands of seconds."""
    fp32 = "--precision fp32"
    lines = {
        "tokenizer": f"tokenizer/train.py --run RUN {TINY_TOKENIZER} {TINY_QUANTIZER} {TINY_TRAINING} {fp32}",
        "encode": f"tokenizer/encode.py RUN --views 2 --shard_size 200 {fp32}",
        "prior": f"prior/train.py --run RUN {TINY_PRIOR} {TINY_TRAINING} {fp32}",
        "generate": "pipeline/generate.py RUN --num-images 40 --batch_size 4",
        "generate codes": "pipeline/generate.py RUN --num-images 40 --batch_size 4 --format codes --output RUN/drawn",
        "evaluate tokenizer": "tokenizer/evaluate.py RUN",
        "evaluate prior": "prior/evaluate.py RUN",
        "evaluate pipeline": "pipeline/evaluate.py RUN --images 60 --neighbours 10",
        "codebook": "tokenizer/codebook.py RUN",
        "compress": "pipeline/compress.py RUN --images 8",
        "tune": "pipeline/tune.py RUN --images 40 --guidance 1 --temperature 0.9 1.0 --top_p null --min_p null",
        "publish": "pipeline/publish.py RUN",
        "publish codes": "pipeline/publish.py RUN --what codes",
        "report": "pipeline/report.py RUN",
        "cluster": "tokenizer/cluster.py --run means --model.image_size 8 8 --model.codebook_size 16 --iterations 8",
        "convert": f"tokenizer/convert.py {CHECKPOINT} --kind taming --run converted --image_size 8 8 --fit_images 64"
        " --images.source digits",
    }
    return {name: [word.replace("RUN", run_folder) for word in line.split()] for name, line in lines.items()}


def replaced(line: Line, option: str, value: object) -> list[Any]:
    """Return the line with another value of an option."""
    at = line.index(option) + 1
    return [*line[:at], value, *line[at + 1 :]]


def prepare(folder: Path) -> None:
    """Make the folder, with what the commands of `tiny` read and none writes: a foreign checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = VQGANConfig(
        image_size=(8, 8),
        image_channels=1,
        first_channels=32,
        channels=(32, 32),
        blocks=1,
        attention_levels=(1,),
        z_channels=4,
        codebook_size=16,
        code_dim=4,
        normalize=False,
    )
    tensors = VQGANTokenizer(config).state_dict()
    found = {
        place.name: tensors[ours].reshape(place.shape) for ours, place in checkpoint_places(config, "taming").items()
    }
    torch.save({"state_dict": found}, folder / CHECKPOINT)
