"""One command at a time on a folder.

    RUN/.tokenizer.lock    host, process and command that works on RUN/tokenizer; gone when it ends

A command holds two locks of the kernel's (`flock`): on that file, which says who it is, and on the folder itself, which
no link leads around and which stays when somebody removes the file. Both end with the process however it dies. Where a
file system has no locks of folders (NFS) the file's is the only one; where it has none at all, the process that the
file names is looked for.
"""

import json
import os
import platform
import re
import shlex
import sys
import threading
import time
from pathlib import Path
from typing import IO, NamedTuple

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

from smalti.common.commands import WHOLE
from smalti.common.ends import pass_on
from smalti.common.errors import Refused, UserError
from smalti.common.process import began

PATIENCE = 10.0  # seconds for a killed command's own helpers, which have the lock too, to notice and end


def command_line() -> str:
    return shlex.join(sys.argv)


class Hold(NamedTuple):
    """The open file and folders of a process that holds a lock."""

    file: IO[str]
    folders: list[int]  # descriptors; several where the folder was replaced meanwhile

    def close(self) -> None:
        for descriptor in self.folders:
            os.close(descriptor)
        self.file.close()


class Lock:
    """A process's lock on a folder, which it creates if need be, and removes again if nothing was written."""

    def __init__(self, folder: Path):
        try:
            self.folder, self.real = folder, folder.resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise UserError(f"{folder} cannot be followed: {error}") from None
        if not self.real.name:
            raise UserError(f"{folder} is the root of the disk; give a folder in it")
        self.path = self.real.with_name(f".{self.real.name}.lock")
        self.thread = 0
        self._hold: Hold | None = None
        self._made: list[Path] = []  # folders that were not there, the innermost first

    def take(self, wait: bool = False) -> None:
        """Take the lock. Raises `Refused` that names the holder, or who works in or around the folder.

        Args:
            wait: until the holder releases it, instead of being refused.
        """
        mine = _held.get(self.real)
        if mine is not None and mine.thread == threading.get_ident():
            raise Refused(f"{self.folder} is being written by this very command; give another folder")
        patience = time.monotonic() + PATIENCE
        while (hold := self._try()) is None:
            holder = self._holder()
            if not wait and (_alive(holder) or time.monotonic() > patience):
                self._unmake()
                raise Refused(_told(self.folder, holder))
            time.sleep(0.1)
        self._hold, self.thread, _held[self.real] = hold, threading.get_ident(), self
        for other in self._overlapping():
            if (holder_ := other.at_work()) is not None:
                self.release()
                raise Refused(_told(other.real, holder_))
        self._inherit()
        hold.file.seek(0)
        hold.file.truncate()
        own = {
            "host": platform.node(),
            "pid": os.getpid(),
            "began": began(os.getpid()),
            "command": command_line(),
            "made": [str(path) for path in self._made],
            "whole": os.environ.get(WHOLE),
        }
        json.dump(own, hold.file)
        hold.file.flush()

    def release(self) -> None:
        if self._hold is None:
            return
        del _held[self.real]
        self._unmake()  # while no other command can have it
        self.path.unlink(missing_ok=True)  # before the lock is released: a command that opened it meanwhile looks again
        self._hold.close()
        self._hold = None
        self._unmake()

    def at_work(self) -> dict | None:
        """Return what is known of the holder who is at work now; None where nobody is. Creates nothing."""
        if self.path.exists():
            hold = self._try()
            if hold is None:
                return self._holder()
            hold.close()
            self._unmake()
            return None
        try:
            descriptor = _lock_folder(self.real)
        except BlockingIOError:
            pass
        else:
            if descriptor is not None:
                os.close(descriptor)
            return None
        return self._holder()  # after the except: an error in it would carry the refused lock as a lack of the machine

    def follow(self, folder: Path) -> None:
        """Lock another folder too, which is about to take the place of the locked one."""
        assert self._hold is not None
        descriptor = _lock_folder(folder)
        if descriptor is not None:
            self._hold.folders.append(descriptor)

    def _try(self) -> Hold | None:
        """Return both locks, taken by this process; None where another holds one, or has just released it."""
        self._make()
        try:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        except FileNotFoundError:  # another command has just removed the folders that it had made
            return None
        if not self._lock_file(file):
            file.close()
            return None
        self._make()
        try:
            folder = _lock_folder(self.real)
        except BlockingIOError:  # somebody removed the holder's file: this one is another
            self.path.unlink(missing_ok=True)
            file.close()
            return None
        return Hold(file, [] if folder is None else [folder])

    def _lock_file(self, file: IO[str]) -> bool:
        try:
            if fcntl is None:
                raise OSError
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.exists(self.path) and os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino
        except BlockingIOError:
            return False
        except OSError:  # no such locks here
            return not _alive(self._holder())

    def _holder(self) -> dict:
        """Return the holder as the file says, or else the kernel; empty while the holder is writing the file."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            pass_on(error)
            found = None
        return found if isinstance(found, dict) else _of_the_kernel(self.real)

    def _overlapping(self) -> list["Lock"]:
        """Return the locks of folders that this one lies in, and of those that lie in it, held or left behind."""
        around = [Lock(parent) for parent in self.real.parents if parent.name]
        inside = [
            Lock(Path(where) / name.removeprefix(".").removesuffix(".lock"))
            for where, _, names in os.walk(self.real, onerror=pass_on)  # a lock that is not seen makes two writers
            for name in names
            if re.fullmatch(r"\..+\.lock", name)
        ]
        return [lock for lock in (*around, *inside) if lock.path.exists()]

    def _inherit(self) -> None:
        """Take over the folders that a killed command created, to remove them if nothing is written now either."""
        before = self._holder().get("made")
        ours = [path for path in (self.real, *self.real.parents) if isinstance(before, list) and str(path) in before]
        self._made += [path for path in ours if path not in self._made]

    def _make(self) -> None:
        folder, missing = self.real, list[Path]()
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        self._made = [*missing, *(path for path in self._made if path not in missing)]
        self.real.mkdir(parents=True, exist_ok=True)

    def _unmake(self) -> None:
        """Remove the created folders in which nothing was written."""
        while self._made:
            try:
                self._made[0].rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return
            self._made.pop(0)


_held: dict[Path, Lock] = {}  # by this process, by the folder's real path: a lock is the process's, not an object's


def follow(folder: Path, successor: Path) -> None:
    """Lock the successor of a folder that this process holds and that it is about to replace."""
    lock = _held.get(folder.resolve())
    if lock is not None:
        lock.follow(successor)


def _lock_folder(folder: Path) -> int | None:
    """Return the open folder, locked; None where folders cannot be locked. Raises `BlockingIOError` if it is taken."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        pass_on(error)
        return None
    try:
        if fcntl is None:
            raise OSError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # NFS: a file must be open for writing to be locked, and a folder never is
    return descriptor


def _of_the_kernel(folder: Path) -> dict:
    """Return the process that holds a folder's lock, as the kernel says, where somebody removed the lock file."""
    try:
        inode, lines = folder.stat().st_ino, Path("/proc/locks").read_text().splitlines()
    except OSError:
        return {}
    found = re.compile(rf"\S+ FLOCK +\S+ +WRITE (\d+) \S+:{inode} ")
    pids = [int(match[1]) for match in map(found.match, lines) if match]
    return {"host": platform.node(), "pid": pids[0], "began": began(pids[0])} if pids else {}


def _told(folder: Path, holder: dict) -> str:
    return (
        f"{folder} is being written by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
        f"({holder.get('command', 'just started')}): {_what_to_do(holder)}"
    )


def _what_to_do(holder: dict) -> str:
    """Return how to go on beside the holder of a lock, which may be a stage that outlived its pipeline/run.py."""
    whole, pid = holder.get("whole"), holder.get("pid")
    if whole is None or holder.get("host") != platform.node() or began(whole) is not None:
        return "wait for it, stop it, or give another folder"
    return (
        f"a stage that goes on by itself, since the pipeline/run.py that started it (process {whole}) was killed. Wait "
        f"for it, or end it with `kill {pid}`, which saves what it has; then the same command goes on"
    )


def _alive(holder: dict) -> bool:
    """Return whether the process that wrote the file may still run; nobody can tell for another host."""
    if not holder:
        return False
    return holder.get("host") != platform.node() or began(holder.get("pid")) == holder.get("began") is not None
