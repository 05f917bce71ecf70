"""The start and the end of a command: the Accelerator, signals that the loop asks about, errors in one line.

Every script is `accelerate launch SCRIPT` or `python SCRIPT`, on one process or several.
"""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, gather_object
from tqdm import tqdm

from smalti.common import ends
from smalti.common.choices import Precision
from smalti.common.commands import typed
from smalti.common.ends import MACHINE
from smalti.common.errors import UserError
from smalti.common.shown import shown
from smalti.common.starting import INTERRUPTED, PREEMPTED, UNHEARD, USER_ERROR, speak_anyhow
from smalti.common.track import check_installed

# Exit statuses, beside those of `ends` and `starting`. A launcher of several processes exits with 1 whatever they did.
FAULT = 70  # of smalti
STOPPED = "interrupted: the same command goes on from what was saved, if anything was"
LOGGED = "The traceback is in "  # begins the note on an error that a session has logged
LOST_PEER = re.compile("connection (was )?(closed|reset)|by peer|broken pipe|timed? ?out|remote process", re.I)
MAIN_SPEAKS_FIRST = 3.0  # seconds; a launcher looks every tenth of one whether a process has ended
ALONE = timedelta(hours=2)  # that others wait for what one process does alone, such as training a classifier
ASK_EVERY = 10  # steps between the questions whether any process was interrupted


def make_accelerator(precision: Precision = "fp32", track: Sequence[str] = (), folder: Path = Path()) -> Accelerator:
    """Return an Accelerator on the devices there are, or the CPU; `auto` is bf16 where the hardware computes it.

    Args:
        track: names of trackers, which `common.run_folder.Metrics` starts.
        folder: of the run's stage, for a tracker that writes files.

    Raises:
        UserError: Accelerate sees one of several processes, which would each do all the work; a tracker is missing.
    """
    check_installed(track)
    found = torch.accelerator.current_accelerator(check_available=True)
    device = "cpu" if found is None else found.type
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    if bf16 and device == "cuda":
        torch.set_float32_matmul_precision("high")  # of the products left in fp32: TF32 is finer than bf16 is
    try:
        accelerator = Accelerator(
            cpu=found is None,
            mixed_precision="bf16" if bf16 else "no",
            log_with=list(track) or None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=ALONE)],
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "tensorboard")),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"accelerate cannot start its processes: {' '.join(str(error).split())}") from None
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UserError(
            f"launched as {launched} processes, of which accelerate sees {accelerator.num_processes}; on CPUs use "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    return accelerator


def computes_bf16(device: str) -> bool:
    """Return whether the hardware multiplies in bf16, on a device of this type."""
    if device == "cpu":
        return torch.backends.mkldnn.is_available() and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return device == "cuda" and torch.cuda.is_bf16_supported(False)


class Interrupted(Exception):
    """Raised when a command was interrupted and its work is saved; the message says how to go on."""


class Terminated(BaseException):
    """Raised on SIGTERM where nothing must be finished first. (No `Exception`, so that nobody catches it.)"""


class Interrupt:
    """A context in which Ctrl-C and SIGTERM do not raise: the loop asks, finishes its step, and saves.

    A second signal stops at once. Outside the main thread the handlers stay as they are: Python sets them only there.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._handlers: dict[int, Any] = {}  # before this context, by signal
        self.stopped = False  # this process was interrupted; others may not know yet

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        global _told_to_end
        _told_to_end = number == signal.SIGTERM
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def asked(self, step: int = 0) -> bool:
        """Return whether to stop after this step: every process gets the same answer at the same step."""
        if self.accelerator.num_processes == 1:
            return self.stopped
        if step % ASK_EVERY:
            return False
        flag = torch.tensor(float(self.stopped), device=self.accelerator.device)
        return self.accelerator.reduce(flag).item() > 0


def anyone(flag: bool, accelerator: Accelerator) -> bool:
    """Return whether the flag of any process is set: what a clock or a disk decides is decided alike on all."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


_told_to_end = False  # whether the last signal of this process was SIGTERM: a signal is the process's, not an object's


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a script's `main` on the command line's arguments and exit with one of the statuses above.

    Whatever ends it is printed in one line on stderr. The traceback of an unexpected error stands in the log of the
    folder the command worked on (`common/session.py`), or on stderr if it worked on none yet.
    """
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    speak_anyhow()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
        status = 0
    except BrokenPipeError:  # `| head` has read enough
        os._exit(UNHEARD)
    except UserError as error:
        status = _fail(f"error: {error}", USER_ERROR)
    except Interrupted as interruption:
        status = _fail(f"interrupted: {interruption}", PREEMPTED if _told_to_end else INTERRUPTED)
    except KeyboardInterrupt:
        status = _fail(STOPPED, PREEMPTED if _told_to_end else INTERRUPTED)
    except Terminated:
        status = _fail(STOPPED, PREEMPTED)
    except Exception as error:
        status = _fail(*_unexpected(error))
    several = _several()
    if several and status == 0:
        torch.distributed.destroy_process_group()
    with suppress(OSError):  # told above, where it could be
        sys.stdout.flush()
        sys.stderr.flush()
    if several and status:
        os._exit(status)  # the others may stand in a collective operation that this process will never come to
    sys.exit(status)


def check_agree(read: str, what: str) -> None:
    """Raise `UserError` unless all processes have read the same of what a training may replace between their reads."""
    if len(set(gather_object([read]))) > 1:
        raise UserError(
            f"{what} was replaced while the processes of this command read it, and they have read different ones: a "
            "training saves there. The same command begins again, when that is done or stopped"
        )


def check_alone() -> None:
    """Raise `UserError` where a launcher started several processes of a command that is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this command is one process: start it with python (or by its name), not with a launcher of several"
        )


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _unexpected(error: Exception) -> tuple[str, int]:
    """Return the message and the exit status for an error that no code of ours raised."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if (known := ends.explain_end(error)) is not None:
        return f"error: {known[0]}", known[1]
    if _several() and isinstance(error, RuntimeError) and LOST_PEER.search(reason):
        return (
            f"error: another process of this job has ended ({reason[:150]}); the launcher names it below. What was "
            "saved is whole, and the same command goes on"
        ), MACHINE
    logged = next((note for note in getattr(error, "__notes__", []) if note.startswith(LOGGED)), None)
    if logged is None:
        traceback.print_exception(error)
    return (
        f"error: {type(error).__name__}: {reason[:300]}; this is a fault of smalti{f'. {logged}' if logged else ''}",
        FAULT,
    )


def _fail(message: str, status: int) -> int:
    """Print why this process ends, and return the status.

    The main process prints first, since the launcher then ends the others: an error of all is printed once.
    """
    for bar in list(getattr(tqdm, "_instances", ())):  # one that is closed at the end of Python speaks after the error
        bar.close()
    rank = int(os.environ.get("RANK", "0"))
    if rank and status in (INTERRUPTED, PREEMPTED):
        return status
    if rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the launcher ends this process now: all is said
        time.sleep(MAIN_SPEAKS_FIRST)
    print(shown(typed(f"[process {rank}] {message}" if rank else message)), file=sys.stderr, flush=True)
    return status
