"""How a command starts and stops: the Accelerator, Ctrl-C as a question the loop asks, errors in one line.

Every script is `accelerate launch SCRIPT` or `python SCRIPT`, on one process or several.
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from common.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]
INTERRUPTED = 130  # the exit status of a command that saved what it had and can go on
MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip
ASK_EVERY = 10  # steps between the questions whether any process was interrupted


def make_accelerator(precision: Precision = "fp32") -> Accelerator:
    """The devices Accelerate gives, or the CPU; `auto` is bf16 where the hardware computes it and fp32 elsewhere.

    Raises:
        UserError: launched as several processes of which Accelerate sees one, which would each do all the work.
    """
    cpu = not torch.accelerator.is_available()
    device = "cpu" if cpu else torch.accelerator.current_accelerator().type
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    if bf16 and device == "cuda":
        torch.set_float32_matmul_precision("high")  # of the products left in fp32: TF32 is finer than bf16 is
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no")
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
    """Whether the hardware multiplies in bf16, on a device of this type."""
    if device == "cpu":
        return torch.backends.mkldnn.is_available() and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return device == "cuda" and torch.cuda.is_bf16_supported(False)


class Interrupt:
    """Within this context Ctrl-C and SIGTERM do not raise: the loop asks, finishes its step, and saves.

    A second signal stops at once.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self._handlers = accelerator, {}
        self.stopped = False  # this process was interrupted; others may not know yet

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def asked(self, step: int = 0) -> bool:
        """Whether to stop after this step: every process gets the same answer at the same step."""
        if self.accelerator.num_processes == 1:
            return self.stopped
        if step % ASK_EVERY:
            return False
        flag = torch.tensor(float(self.stopped), device=self.accelerator.device)
        return self.accelerator.reduce(flag).item() > 0


class Interrupted(Exception):
    """What was done is saved; the message says how to go on."""


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a script's `main` on the command line's arguments; what a user can mend ends in one line, not a traceback."""
    try:
        main(sys.argv[1:])
        status = 0
    except UserError as error:
        status = _fail(f"error: {error}", 2)
    except Interrupted as interruption:
        status = _fail(f"interrupted: {interruption}", INTERRUPTED)
    except KeyboardInterrupt:
        status = _fail("interrupted: the same command goes on from what was saved", INTERRUPTED)
    except torch.OutOfMemoryError as error:
        status = _fail(f"error: the device's memory is full ({str(error).splitlines()[0]}); lower batch_size", 1)
    except (OSError, SafetensorError) as error:
        reason = _unwritable(error)
        if reason is None:
            raise
        status = _fail(f"error: cannot write: {reason}; what was whole before still is, and the same command goes on", 1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)


def _unwritable(error: OSError | SafetensorError) -> str | None:
    """Why a file could not be written, when that is for the user to mend."""
    if isinstance(error, SafetensorError):  # it tells the number in words
        found = re.search(r"os error (\d+)", str(error))
        error = OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError()
    if error.errno not in MENDABLE:
        return None
    return f"{error.strerror} {error.filename or ''}".strip()


def _fail(message: str, status: int) -> int:
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 or status != INTERRUPTED:
        print(f"[process {rank}] {message}" if rank else message, file=sys.stderr, flush=True)
    return status
