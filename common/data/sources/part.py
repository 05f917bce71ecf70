"""A source as it was found: its splits, each N encoded images with labels, and its unread files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

EXAMPLES = 3  # of each kind of unread files, by name


class Column(Protocol):
    """N encoded images, an array or on the disk: `{"bytes": ..., "path": ...}` each."""

    def __getitem__(self, rows: np.ndarray, /) -> Iterable[dict[str, Any] | None]:
        """Return those of rows (n,)."""


class Part(NamedTuple):
    """One split as the source has it: N rows, nothing decoded."""

    title: str  # "split train of FOLDER"
    column: Column
    sizes: np.ndarray  # (N,) int64, bytes
    labels: np.ndarray  # (N,) int64
    wrong_labels: dict[int, str]  # rows whose label is none of the classes, and what it is


class Unread(NamedTuple):
    """Files or rows of one kind that lie in a source and are not read."""

    kind: str  # "files of other formats (3 .heic)", "images of no class beside the class folders"
    number: int
    examples: tuple[str, ...]  # the first few, relative to the source


Left = dict[str, list[str]]  # what lies there and is not read: kind -> names


class Source(NamedTuple):
    """The splits of a source, its class names and its unread files."""

    parts: dict[str, Part]  # of each split
    class_names: tuple[str, ...] | None
    unread: tuple[Unread, ...]
    place: Path | None  # the folder, absolute and resolved; none for the digits and the Hub
    notes: tuple[str, ...] = ()  # how the folder was understood, where it could have been understood otherwise


def as_unread(left: Mapping[str, Sequence[str]]) -> tuple[Unread, ...]:
    return tuple(
        Unread(kind, len(names), tuple(map(printable_name, names[:EXAMPLES]))) for kind, names in left.items() if names
    )


def printable_name(name: str) -> str:
    """Return a file's name as text that can be printed, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
