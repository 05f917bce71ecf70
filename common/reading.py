"""Files that may be a stranger's: only regular files are read, and no more bytes than a reader expects.

A pipe makes a reader wait for ever, a device such as /dev/zero has no end, and a file of /proc says that it has no
bytes. So a file is opened without waiting, looked at, and read up to a bound.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_BYTES = 2**30  # of one file, where a caller says no less


@contextmanager
def open_regular_file(path: Path) -> Iterator[io.BufferedReader]:
    """Return a regular file, open for reading, as a context.

    Raises:
        ValueError: it is a folder, a pipe, a socket or a device, which may have no end.
        OSError: it is not there, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no file but a folder, a pipe or a device")
    with open(descriptor, "rb") as file:
        yield file


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        ValueError: as `open_regular_file`; or it has more than `most` bytes.
        OSError: it is not there, or cannot be read.
    """
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes; at most {most:,} are read")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a regular file in UTF-8, without its byte-order mark.

    Raises:
        ValueError: as `read_file`; or it is no UTF-8.
        OSError: as `read_file`.
    """
    return read_file(path, most).decode("utf-8-sig")
