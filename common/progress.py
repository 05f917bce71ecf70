"""How far a command is, on stderr in one style: a bar on a terminal, in a log file a line every ten seconds.

progress_bar    of a command's main work: stays when it is done
passing_bar     of a part of it, such as an evaluation: shown only if it lasts, below the other bar, and gone when done
passing_word    of what has no measure: a line, if it lasts
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from smalti.common.shown import shown

INTERVAL = 10.0  # seconds between the lines of a log file
SHORT = 3.0  # seconds; what takes no longer has no passing bar


def on_main() -> bool:
    """Return whether this is the main process, or the only one, where there is no Accelerator to ask."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


class _Lines:
    """A log file's stand-in for the terminal: the bar's carriage returns become lines."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip("\r\n ") + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(accelerator: Accelerator, total: int, what: str, *, initial: int = 0, unit: str = "step") -> tqdm:
    """Return a bar with rate and time left, shown by the main process.

    Give it figures by `set_postfix(..., refresh=False)`: a refresh would add a line to the log file.
    """
    return _bar(total, what, unit, initial=initial, disable=not accelerator.is_main_process)


def passing_bar(total: int, what: str, *, unit: str = "image", **options: Any) -> tqdm:
    """Return a bar for a part of the work, shown after `SHORT` seconds; `options` are tqdm's."""
    quiet = options.get("disable", False) or not on_main()
    return _bar(total, what, unit, **{"delay": SHORT, "leave": False, **options, "disable": quiet})


def advance(bar: tqdm, number: int) -> None:
    """Move a bar by a number, but not beyond the end: the progress of all processes is guessed from this one."""
    assert bar.total is not None  # every bar that is made here has one
    bar.update(min(number, bar.total - bar.n))


@contextmanager
def passing_word(what: str) -> Iterator[None]:
    """Print a line on the main process if this context takes longer than `SHORT`."""
    timer = threading.Timer(SHORT, lambda: print(what, file=sys.stderr, flush=True))
    timer.daemon = True
    if on_main():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _bar(total: int, what: str, unit: str, **options: Any) -> tqdm:
    style: dict[str, Any]
    if sys.stderr.isatty():
        style = {"mininterval": 0.2, "dynamic_ncols": True}
    else:  # ncols 0: no bar; position 0: no moves of a cursor to the line of a bar inside another
        style = {"mininterval": INTERVAL, "maxinterval": INTERVAL, "file": _Lines(), "ncols": 0, "position": 0}
    return tqdm(total=total, unit=f" {unit}", smoothing=0.05, **{"desc": shown(what), **style, **options})
