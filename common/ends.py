"""Errors that are the machine's or the disk's, neither ours nor a damaged file's, and what to do about each.

Libraries report the same lack as a class, as the system's error number or in their own words, and wrap it in other
errors: so an error is examined together with those it was raised from.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

USER_ERROR = 2  # the exit status after what the user can mend
MACHINE = 1  # the disk or the memory is full, or another process of the job has ended


class Lack(NamedTuple):
    """Something that the machine has no more of."""

    numbers: frozenset[int]  # of the system's errors
    words: str  # a pattern of what libraries say
    told: str


LACKS = (
    Lack(
        frozenset(),
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|MPS backend out of memory",
        "the device's memory is full; lower batch_size",
    ),
    Lack(
        frozenset({errno.ENOMEM}),
        r"can't allocate memory|not enough memory|cannot allocate memory|failed to map segment|bad_alloc"
        r"|unable to allocate|allocation failed|malloc of size|malloc failed|could not create a primitive$"
        # Python lost a MemoryError
        r"|^SystemError .*(error return without exception set|without setting an exception)",
        "this machine's memory is full, or its limit (ulimit -v); lower batch_size, or images.memory to read from disk",
    ),
    Lack(
        frozenset({errno.EMFILE, errno.ENFILE}),
        r"too many open files|received \d+ items of ancdata",
        "too many files are open; allow more with `ulimit -n 4096` before the command, or lower workers",
    ),
    Lack(
        frozenset({errno.EAGAIN}),
        r"can't start new thread|resource temporarily unavailable|unable to create.* thread",
        "no more threads or processes may be started; allow more with `ulimit -u`, lower workers, or set "
        "OMP_NUM_THREADS=1",
    ),
    Lack(
        frozenset(),
        r"DataLoader worker .*(exited unexpectedly|killed by signal)|DataLoader timed out",
        "a process that reads images was ended from outside, as a full memory does; lower workers or batch_size",
    ),
)
NO_ANSWER = {
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
    errno.ENODEV,
    errno.ETIMEDOUT,
    getattr(errno, "EREMOTEIO", errno.EIO),
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}
CACHES = {  # of libraries: the variable that moves each, and where it is without, if that is in the home
    "HF_DATASETS_CACHE": "~/.cache/huggingface/datasets",
    "HF_HUB_CACHE": "~/.cache/huggingface/hub",
    "HF_HOME": "~/.cache/huggingface",
    "TORCH_HOME": "~/.cache/torch",
    "TORCHINDUCTOR_CACHE_DIR": None,
    "TRITON_CACHE_DIR": "~/.triton",
    "MPLCONFIGDIR": "~/.config/matplotlib",
    "XDG_CACHE_HOME": "~/.cache",
    "TMPDIR": None,
}
GONE = (
    "it was removed or renamed while this command worked with it; put it back, and the same command goes on from "
    "what was saved"
)
# our files and the libraries', none of which is ever removed
OURS = (Path(__file__).resolve().parents[1], Path(sys.prefix).resolve())


def lack(error: BaseException) -> str | None:
    """Return what the machine has no more of and what to do about it, if that is what an error means."""
    for each in _causes(error):
        if isinstance(each, MemoryError):
            return LACKS[1].told
        number, words = _number(each), f"{type(each).__name__} {each}"
        for known in LACKS:
            if number in known.numbers or (known.words and re.search(known.words, words, re.IGNORECASE)):
                return known.told
    return None


def pass_on(error: BaseException) -> None:
    """Raise an error again if it is the machine's, where a caller would take it for a damaged file."""
    if lack(error) is not None:
        raise error


def explain_end(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit status for an error of the machine, the disk or the user; None for others."""
    if (known := lack(error)) is not None:
        return f"{known}. What was whole before still is, and the same command goes on ({_reason(error)})", MACHINE
    return next((said for each in _causes(error) if (said := _of_the_disk(each)) is not None), None)


def _of_the_disk(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit status for an error in reading or writing a file."""
    number, path = _number(error), _path(error)
    what = f"{os.strerror(number or 0)} {path or ''}".strip()
    if number in FULL:
        return f"cannot write: {what}; what was whole before still is, and the same command goes on", MACHINE
    if number in NO_ANSWER:
        network = f"the disk, or the network it is on, does not answer: {what}"
        return f"{network}; see that it does, and the same command goes on", MACHINE
    if number in REFUSED and (variable := cache_variable(path)) is not None:
        return f"cannot write a cache: {what}; make it writable, or set {variable} to a folder that is", USER_ERROR
    if number in REFUSED and path is not None and path.is_file() and not os.access(path, os.R_OK):
        return f"cannot read: {what}; make it readable", USER_ERROR
    if number in REFUSED:
        return f"cannot write: {what}; make it writable, or give another folder", USER_ERROR
    if number == errno.ENOENT and "temporary directory" in str(error):
        return "no folder for temporary files can be written; set TMPDIR to one that can", USER_ERROR
    if number == errno.ENOENT and path is not None and (closed := unwritable_above(path)) is not None:
        return (
            f"cannot write: {path} is not there, and nothing can be written in {closed}; give another folder",
            USER_ERROR,
        )
    if number == errno.ENOENT and path is not None and not any(path.resolve().is_relative_to(ours) for ours in OURS):
        return f"{path} is not there any more: {GONE}", USER_ERROR
    return None


def unwritable_above(path: Path) -> Path | None:
    """Return the folder that a missing path would lie in, if nobody may write there, so that nothing was removed.

    /proc says of a new folder that it does not exist, to root too, whom no permission stops.
    """
    above = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return above if above is not None and not above.stat().st_mode & 0o222 else None


def cache_variable(path: Path | None) -> str | None:
    """Return the variable that moves the cache a path lies in; None where it lies in none."""
    if path is None:
        return None
    for variable, default in CACHES.items():
        place = os.environ.get(variable) or default
        if place is not None and path.absolute().is_relative_to(Path(place).expanduser().absolute()):
            return variable
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it was raised from, first to last."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _number(error: BaseException) -> int | None:
    """Return the system's number of an error; safetensors gives it in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _path(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:150]
