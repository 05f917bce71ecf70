"""A command's session on a folder: it excludes every other command, and logs errors beside the folder.

RUN/.tokenizer.lock    who works on RUN/tokenizer, see `common/lock.py`
RUN/tokenizer.log      every end that was not a good one, with the whole traceback of what nobody expected
"""

import os
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from accelerate import Accelerator

from smalti.common.errors import Refused, UserError
from smalti.common.folder import mend
from smalti.common.launch import LOGGED, Interrupted, Terminated
from smalti.common.lock import Lock, command_line
from smalti.common.shown import shown, shown_lines


@contextmanager
def session(folder: Path, accelerator: Accelerator, *, wait: bool = False) -> Iterator[None]:
    """Lock `folder`, which need not exist yet, for the processes of this job, and log errors of this context.

    A folder that a kill left aside comes back to its place. Else it is locked and nothing more: whose it is the command
    decides, and then sweeps it (`common.folder.sweep`).

    Args:
        wait: until another command is done with the folder, instead of being refused.
    Raises:
        Refused: another command is at work on the folder, in it or around it; it names host, process and command.
    """
    lock = Lock(folder) if accelerator.is_main_process else None
    try:
        with logged(folder):
            if lock is not None:
                lock.take(wait)
                mend(lock.real)
            accelerator.wait_for_everyone()
            yield
    finally:
        if lock is not None:
            lock.release()


def at_work(folder: Path) -> str | None:
    """Return the process that writes into a folder now, in words; None where there is none."""
    holder = Lock(folder).at_work()
    return None if holder is None else f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def tell_of_training(what: str, accelerator: Accelerator, *stages: Path) -> None:
    """Print a warning of each stage that another command is training: `what` is of its weights as last saved."""
    for stage in stages:
        if accelerator.is_main_process and (busy := at_work(stage)) is not None:
            print(f"{stage} is being trained by {busy}: {what} are of its weights as last saved", file=sys.stderr)


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Write an error of this context into the folder's log, and raise it again."""
    try:
        yield
    except BaseException as error:
        _log(folder, error)
        raise


def log_path(folder: Path) -> Path:
    return path_beside(folder, ".log")


def path_beside(folder: Path, ending: str) -> Path:
    """Return the path beside a folder, of its name with an ending. Raises `UserError` for the root."""
    spelled = folder.resolve() if folder.name in ("", "..") else folder
    if not spelled.name:
        raise UserError(f"{folder} is the root of the disk; give a folder in it")
    return spelled.with_name(f"{spelled.name}{ending}")


def _log(folder: Path, error: BaseException) -> None:
    """Append how a session ended, unless it touched nothing and the user has been told all there is."""
    told = isinstance(error, UserError | Interrupted | KeyboardInterrupt | Terminated | SystemExit)
    if isinstance(error, Refused) or (told and not (folder.is_dir() and any(folder.iterdir()))):
        return
    path, now = log_path(folder), datetime.now(UTC).isoformat(timespec="seconds")
    head = f"{now} process {os.environ.get('RANK', '0')} of {platform.node()}:{os.getpid()}, {command_line()}\n"
    body = f"{type(error).__name__}: {shown(error)}\n" if told else "".join(traceback.format_exception(error))
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(shown_lines(head + body))
    except OSError:  # a full disk, perhaps this very error, or the run was removed: stderr has the message
        return
    if not told:
        error.add_note(f"{LOGGED}{path}")
