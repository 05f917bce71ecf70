"""Columns of tables as parts of a source: undecoded images and their labels, found by type or by name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smalti.common.data.config import ImagesConfig
from smalti.common.data.sources.class_names import class_names, normal, numbered, refuse_other_names
from smalti.common.data.sources.files import hold_inside
from smalti.common.data.sources.part import Column, Part, one_line
from smalti.common.errors import UserError
from smalti.common.raster import read_file

if TYPE_CHECKING:  # half a second, and the digits do without
    import pyarrow as pa
    from datasets import Dataset


def file_of(encoded: dict[str, Any] | None) -> bytes:
    """Return the file in a row of `Image(decode=False)`, from the row itself or from the disk."""
    if encoded is None or not (encoded["bytes"] or encoded["path"]):
        raise ValueError("there is no image")
    return encoded["bytes"] or read_file(Path(encoded["path"]))


class Files:
    """A column of images that are files of a folder."""

    def __init__(self, root: Path, files: Sequence[str]):
        self.root, self.files = str(root), files

    def __getitem__(self, rows: np.ndarray, /) -> list[dict[str, Any] | None]:
        return [{"bytes": None, "path": os.path.join(self.root, self.files[row])} for row in rows.tolist()]

    def sizes(self) -> np.ndarray:
        """Return the bytes of each file, (N,) int64."""
        return np.array([os.path.getsize(os.path.join(self.root, file)) for file in self.files], dtype=np.int64)


class _Beside:
    """A table's column with images in files; a relative path begins at the table's folder."""

    def __init__(self, column: Any, folder: Path):
        self.column, self.folder = column, folder

    def __getitem__(self, rows: np.ndarray, /) -> Iterator[dict[str, Any] | None]:
        for encoded in self.column[rows]:
            outside = encoded is not None and not encoded["bytes"] and encoded["path"]
            yield {"bytes": None, "path": str(self.folder / encoded["path"])} if outside else encoded


def column_parts(
    splits: Mapping[str, "Dataset"], config: ImagesConfig, folder: Path | None, homes: tuple[Path, ...]
) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """Return the parts of the splits of a source that `datasets` reads, and its class names.

    Args:
        folder: where the tables lie; `homes` are the folders that images which a table names may lie in.
    """
    from datasets import ClassLabel, Image

    train = splits["train"]
    image_column = _column(train.features, "image_column", config.image_column, Image)
    label_column = _column(train.features, "label_column", config.label_column, ClassLabel)
    if image_column is None:
        raise UserError(f"image_column must name one of {', '.join(train.features)}: none of them has the type Image")
    names = None
    if label_column is not None:
        named = tuple(getattr(train.features[label_column], "names", ()))
        names = _normal_names(named, label_column)
        names = names or class_names(_values(train, label_column).to_pylist(), f"label_column {label_column}")
    parts = {}
    for name, dataset in splits.items():
        title = f"split {name} of {config.source}"
        labels, wrong = _labels(dataset, title, label_column, names)
        column, sizes = _encoded(dataset, title, image_column, folder, homes if config.reach == "folder" else None)
        parts[str(name)] = Part(title, column, sizes, labels, wrong)
    return parts, names


def _normal_names(names: Sequence[str], column: str) -> tuple[str, ...]:
    """Return a table's own class names, in the order of its numbers."""
    found = tuple(map(normal, names))
    again = next((name for i, name in enumerate(found) if name in found[:i]), None)
    if again is not None:
        raise UserError(f"label_column {column}: two of its classes are called {again}; give each a name of its own")
    return found


def _column(features: Mapping[str, Any], setting: str, named: str | None, kind: type) -> str | None:
    """Return the column `named`, or the only one whose feature is of this kind."""
    if named is not None and named not in features:
        raise UserError(f"{setting} {named}: there is no such column; there are {', '.join(features)}")
    found = [named] if named else [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        raise UserError(f"{setting} must name one of several {kind.__name__} columns: {', '.join(found)}")
    return found[0] if found else None


def _values(dataset: "Dataset", column: str) -> "pa.ChunkedArray":
    return dataset.select_columns([column]).with_format("arrow")[:][column]


def _encoded(
    dataset: "Dataset", title: str, column: str, folder: Path | None, homes: tuple[Path, ...] | None
) -> tuple[Column, np.ndarray]:
    """Return the undecoded column, and the bytes of each row's file, 0 where it is missing."""
    import pyarrow.compute as pc
    from datasets import Image

    try:
        rows = dataset.select_columns([column]).with_format(None).cast_column(column, Image(decode=False))
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        got = dataset.features.get(column, "no such column")
        raise UserError(f"{title}: expected images in the column {column}; got {got} ({one_line(error)})") from None
    values = _values(rows, column)
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(values, "bytes")), 0).to_numpy().astype(np.int64)
    if sizes.all():
        return rows[column], sizes
    here = folder or Path.cwd()
    paths = pc.struct_field(values, "path").to_pylist()
    for i in np.flatnonzero(sizes == 0).tolist():
        if paths[i]:
            sizes[i] = _size(paths[i], here, homes, f"{title}, row {i}: its path {paths[i]!r}")
    return _Beside(rows[column], here), sizes


def _size(name: str, folder: Path, homes: tuple[Path, ...] | None, what: str) -> int:
    """Return the bytes of a file that a row names; 0 where there is none."""
    if "://" in name or "::" in name or "\0" in name:
        raise UserError(f"{what} must be a file in the folder: nothing is fetched from elsewhere")
    if homes is not None:
        hold_inside(folder / name, homes, what)
    return os.path.getsize(folder / name) if (folder / name).is_file() else 0


def _labels(
    dataset: "Dataset", title: str, column: str | None, names: tuple[str, ...] | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Return each row's class, (N,) int64, and the rows whose label is none of the classes.

    A class is -1 where the row has none or hides it, as test splits on the Hub do.
    """
    if names is None or column is None or column not in dataset.features:
        return np.full(len(dataset), -1), {}
    feature, labels = dataset.features[column], _values(dataset, column).to_pylist()
    if not hasattr(feature, "names"):
        return numbered(labels, names, title), {}
    refuse_other_names(title, tuple(map(normal, feature.names)), names)
    known, hidden = range(len(names)), (None, -1)
    wrong = {
        row: f"its label {label} is none of the {len(names)} classes"
        for row, label in enumerate(labels)
        if label not in known and label not in hidden
    }
    return np.array([label if label in known else -1 for label in labels], dtype=np.int64), wrong
