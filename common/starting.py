"""Signals in a command's first seconds, while Python still imports torch: one line, and the status `common.launch` gives."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED, PREEMPTED = 130, 75  # as in common.launch, which imports torch


def answer_signals() -> None:
    """Until `common.launch.run_command` takes over, Ctrl-C and SIGTERM end the process at once."""
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("interrupted: nothing was begun yet; the same command begins again", file=sys.stderr, flush=True)
    os._exit(PREEMPTED if number == signal.SIGTERM else INTERRUPTED)
