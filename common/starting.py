"""Signals in a command's first seconds, while Python still imports torch: one line, and the status they have later too."""

import os
import signal
import sys
from types import FrameType

PREEMPTED = 75  # the exit status after SIGTERM: what was done is saved, and the same command goes on
INTERRUPTED = 130  # after Ctrl-C, likewise


def answer_signals() -> None:
    """Until `common.launch.run_command` takes over, Ctrl-C and SIGTERM end the process at once."""
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("interrupted: nothing was begun yet; the same command begins again", file=sys.stderr, flush=True)
    os._exit(PREEMPTED if number == signal.SIGTERM else INTERRUPTED)
