"""A command at work on a folder: no second one may be, and what went wrong stands in the folder's log.

    RUN/.tokenizer.lock    host, process and command that works on RUN/tokenizer; gone when it ends
    RUN/tokenizer.log      every end that was not a good one, with the whole traceback of what nobody expected

The lock is the kernel's (`flock`): it ends with its process however that dies, so a file left behind locks nobody out. Where a
file system has no such locks, the process that the file names is looked for.
"""

import json
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from accelerate import Accelerator

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

from common.errors import UserError
from common.folder import sweep
from common.launch import LOGGED, Interrupted, Terminated

PATIENCE = 10.0  # seconds for a killed command's own helpers, which have the lock too, to notice and end


@contextmanager
def session(folder: Path, accelerator: Accelerator, *, wait: bool = False) -> Iterator[None]:
    """Within this context the processes of this job, and no others, write into `folder`, which need not exist yet.

    What an earlier command that was killed left half written is swept away first.

    Args:
        wait: until another command is done with the folder, instead of being refused.
    Raises:
        UserError: another command is at work on the folder; it names host, process and command.
    """
    lock = Lock(folder) if accelerator.is_main_process else None
    try:
        with logged(folder):
            if lock is not None:
                lock.take(wait)
                sweep(folder)
            accelerator.wait_for_everyone()
            yield
    finally:
        if lock is not None:
            lock.release()


def at_work(folder: Path) -> str | None:
    """Who writes into a folder now, for a reader to know; none where nobody does."""
    lock = Lock(folder)
    if not lock.path.exists():
        return None
    if (file := lock._try()) is not None:
        file.close()
        return None
    holder = lock._holder()
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Within this context an error goes into the folder's log, on its way to whoever tells the user."""
    try:
        yield
    except BaseException as error:
        _log(folder, error)
        raise


def log_path(folder: Path) -> Path:
    return named(folder, f"{folder.absolute().name}.log")


def named(folder: Path, name: str) -> Path:
    """The path of that name beside a folder. Raises `UserError` for the root, which has nothing beside it."""
    if not folder.absolute().name:
        raise UserError(f"{folder} is the root of the disk; give a folder in it")
    return folder.absolute().with_name(name) if folder.name in ("", "..") else folder.with_name(name)


def _log(folder: Path, error: BaseException) -> None:
    """Append how a session ended, unless it never wrote anything and the user has been told all there is."""
    told = isinstance(error, UserError | Interrupted | KeyboardInterrupt | Terminated | SystemExit)
    if told and not folder.exists():
        return
    path, now = log_path(folder), datetime.now(UTC).isoformat(timespec="seconds")
    head = f"{now} process {os.environ.get('RANK', '0')} of {platform.node()}:{os.getpid()}, {_command()}\n"
    body = f"{type(error).__name__}: {error}\n" if told else "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(head + body)
    except OSError:  # a full disk, perhaps the very error: it is told on stderr
        return
    if not told:
        error.add_note(f"{LOGGED}{path}")


def _command() -> str:
    return shlex.join(sys.argv)


class Lock:
    """One process's hold on a folder."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, named(folder, f".{folder.absolute().name}.lock")
        self._file: IO[str] | None = None
        self._made: list[Path] = []  # folders that were not there

    def take(self, wait: bool = False) -> None:
        """Take it. Raises `UserError` that names the holder, unless told to wait for it."""
        parent = self.path.parent
        while not parent.exists():
            self._made.append(parent)
            parent = parent.parent
        self.path.parent.mkdir(parents=True, exist_ok=True)
        patience = time.monotonic() + PATIENCE
        while (file := self._try()) is None:
            holder = self._holder()
            if not wait and (_alive(holder) or time.monotonic() > patience):
                raise UserError(
                    f"{self.folder} is being written by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
                    f"({holder.get('command', 'just started')}): wait for it, stop it, or give another folder"
                )
            time.sleep(0.1)
        file.seek(0)
        file.truncate()
        json.dump({"host": platform.node(), "pid": os.getpid(), "began": _began(os.getpid()), "command": _command()}, file)
        file.flush()
        self._file = file

    def _try(self) -> IO[str] | None:
        """The lock file, held by this process now; none where another holds it, or just let it go."""
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        try:
            if fcntl is None:
                raise OSError
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.exists(self.path) and os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino
        except BlockingIOError:
            held = False
        except OSError:  # no such locks here
            held = not _alive(self._holder())
        if not held:
            file.close()
        return file if held else None

    def _holder(self) -> dict:
        """What the file says of who holds it; empty while the holder is writing it."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def release(self) -> None:
        if self._file is None:
            return
        self.path.unlink(missing_ok=True)  # before the lock goes: whoever opened it meanwhile looks again
        self._file.close()
        self._file = None
        for folder in self._made:
            try:
                folder.rmdir()  # only where nothing came of it
            except OSError:
                return


def _alive(holder: dict) -> bool:
    """Whether the process that wrote the file may still run: of another host nobody can tell."""
    if not holder:
        return False
    return holder.get("host") != platform.node() or _began(holder.get("pid")) == holder.get("began") is not None


def _began(pid: object) -> str | None:
    """When a process of this machine started, which tells it from a later one of the same number; none if it has ended."""
    try:
        return Path(f"/proc/{int(str(pid))}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return None
