"""Signals in a command's first seconds, while Python imports torch: one line, and the same exit status as later."""

import os
import signal
import sys
from types import FrameType, TracebackType

from smalti.common import ends
from smalti.common.ends import USER_ERROR as USER_ERROR
from smalti.common.shown import Outlet

PREEMPTED = 75  # the exit status after SIGTERM: what was done is saved, and the same command goes on
INTERRUPTED = 130  # after Ctrl-C, likewise
UNHEARD = 141  # after the reader of the output closed it, as `head` does


def answer_signals() -> None:
    """End the process in one line on Ctrl-C, SIGTERM or a lack of the machine, until `run_command` takes over."""
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    sys.excepthook = _lacking


def speak_anyhow() -> None:
    """Let output never raise: send it nowhere if there is no stream, and escape or replace what cannot be shown."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
            setattr(sys, name, Outlet(stream))


def _lacking(cls: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what ends an import: in a line what the machine lacks, else a traceback as Python does. Exits with 1."""
    known = ends.lack(error)
    if known is None and isinstance(error, SystemError):  # a library that was given no memory, and did not notice
        known = ends.lack(MemoryError())
    if known is None:
        sys.__excepthook__(cls, error, trace)
    else:
        print(f"error: {known}", file=sys.stderr, flush=True)


def _end(number: int, _frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("interrupted: nothing was begun yet; the same command begins again", file=sys.stderr, flush=True)
    os._exit(PREEMPTED if number == signal.SIGTERM else INTERRUPTED)
