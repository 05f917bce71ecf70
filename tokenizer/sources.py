"""Where images lie: the built-in digits, a Hub dataset, or a folder, as parts of encoded rows with their labels.

    source (digits | Hub | folder)  ->  open_source  ->  a Part for each split: N rows, nothing decoded

Folders hold Parquet, Arrow, WebDataset shards or image files. Columns are found by their type or named.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import yaml

from common.config import load_yaml
from common.errors import UserError
from common.progress import on_main, passing_word
from common.raster import read_file
from tokenizer.config import ImagesConfig

if TYPE_CHECKING:  # half a second, and the digits do without
    import pyarrow as pa
    from datasets import Dataset

VALIDATION_NAMES = ("validation", "val", "valid", "dev")
SPLIT_NAMES = {"train", "test", *VALIDATION_NAMES}
IMAGE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2",
    ".avif", ".ico",
}  # fmt: skip
TABLE_SUFFIXES = {".parquet", ".arrow", ".tar"}
LAYOUTS = "Parquet, Arrow, WebDataset .tar shards, or image files (class folders, or metadata.jsonl)"
MOST_CLASSES = 2**20  # a larger number in a column is an id, not a class
FINGERPRINTED = 256  # rows a split whose bytes the fingerprint covers


class Column(Protocol):
    """N encoded images, an array or on the disk."""

    def __getitem__(self, rows: np.ndarray, /) -> Iterable[dict[str, Any] | None]:
        """Those of rows (n,)."""


class Part(NamedTuple):
    """One split as the source has it: N rows, nothing decoded."""

    title: str  # "split train of FOLDER"
    column: Column
    sizes: np.ndarray  # (N,) int64, bytes
    labels: np.ndarray  # (N,) int64
    wrong_labels: dict[int, str]  # rows whose label is none of the classes, and what it is


class Unread(NamedTuple):
    """Files or rows of one kind that lie in a source and are not read."""

    kind: str  # "files of other formats (.heic)", "images of no class beside the class folders"
    number: int
    examples: tuple[str, ...]  # the first few, relative to the source


class Source(NamedTuple):
    """A source as it was found."""

    parts: dict[str, Part]  # of each split
    class_names: tuple[str, ...] | None
    unread: tuple[Unread, ...]
    place: Path | None  # the folder, absolute and resolved; none for the digits and the Hub


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def file_of(encoded: dict[str, Any] | None) -> bytes:
    """The file in a row of `Image(decode=False)`, wherever it is."""
    if encoded is None or not (encoded["bytes"] or encoded["path"]):
        raise ValueError("there is no image")
    return encoded["bytes"] or read_file(Path(encoded["path"]))


# ------------------------------------------------------------------------------------------ a source by `datasets`


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _files_under(folder: Path, prefix: str = "", above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Every file's path, relative to the folder first given; hidden ones are left out. Links are followed."""
    above = (*above, folder.resolve())
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inner = folder / entry.name
                if entry.is_symlink() and inner.resolve() in above:
                    raise UserError(f"{inner} is a link to a folder that it stands in: it would be read without end; remove it")
                yield from _files_under(inner, f"{prefix}{entry.name}/", above)
            else:
                yield prefix + entry.name


def _split_folders(files: list[str]) -> dict[str, list[str]]:
    """Which files stand in which split; "" holds all where the folders are classes (one may be called train)."""
    tops = {file.partition("/")[0] for file in files if "/" in file and _suffix(file) in IMAGE_SUFFIXES}
    deep = any(file.startswith("train/") and file.count("/") > 1 for file in files)
    if "metadata.jsonl" in files or "train" not in tops or not (deep or tops <= SPLIT_NAMES):
        return {"": files}
    return {top: [file.removeprefix(f"{top}/") for file in files if file.startswith(f"{top}/")] for top in sorted(tops)}


def _listed(metadata: Path) -> tuple[list[str], list[Any]]:
    """The paths and labels in a metadata.jsonl."""
    paths, labels = [], []
    for number, line in enumerate(metadata.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            paths.append(str(metadata.parent / row["file_name"]))
            labels.append(row.get("label"))
        except (ValueError, KeyError, TypeError, AttributeError):
            expected = 'expected a JSON object with "file_name" and, where there are labels, "label"'
            raise UserError(f"{metadata}, line {number}: {expected}; got {line[:80]}") from None
        if Path(row["file_name"]).is_absolute() or ".." in Path(row["file_name"]).parts:
            raise UserError(f"{metadata}, line {number}: file_name must stay inside the folder, got {row['file_name']!r}")
    return paths, labels


def _found(root: Path, files: list[str]) -> tuple[list[str], list[Any]]:
    """The paths of the images among `files`, and the class folder of each."""
    files = sorted(file for file in files if _suffix(file) in IMAGE_SUFFIXES)
    labels = [file.partition("/")[0] if "/" in file else None for file in files]
    if None in labels and any(labels):
        stray = files[labels.index(None)]
        raise UserError(f"{root} holds class folders and beside them images of no class, such as {stray}; move these")
    return [str(root / file) for file in files], labels


def _image_folder(folder: Path, files: list[str]) -> dict[str, "Dataset"]:
    """Folders of image files. (load_dataset("imagefolder") takes 91 s over 60,000 of them, and 64 s the next time.)"""
    from datasets import ClassLabel, Dataset, Image

    found = {}
    for name, here in _split_folders(files).items():
        listed = "metadata.jsonl" in here
        found[name or "train"] = _listed(folder / name / "metadata.jsonl") if listed else _found(folder / name, here)
    class_names = _class_names(found["train"][1], f"labels of {folder}")
    splits = {}
    for name, (paths, labels) in found.items():
        splits[name] = Dataset.from_dict({"image": paths}).cast_column("image", Image(decode=False))
        if class_names:
            numbers = _numbered(labels, class_names, f"split {name} of {folder}")
            splits[name] = splits[name].add_column("label", numbers).cast_column("label", ClassLabel(names=class_names))
    return splits


def _refuse_other_names(parquet: dict[str, list[str]]) -> None:
    """`load_dataset` reads every split by the class names of the first, and would renumber the others' silently."""
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    expected: dict[str, list[str]] = {}
    for files in parquet.values():
        for column, feature in Features.from_arrow_schema(pq.read_schema(files[0])).items():
            if isinstance(feature, ClassLabel):
                _same_names(f"column {column} of {files[0]}", feature.names, expected.setdefault(column, feature.names))


def _refuse_files_elsewhere(folder: Path) -> None:
    """A folder's README may name its data files: of the folder, not of this machine or of the network."""
    readme = folder / "README.md"
    head = re.match(r"\s*---\n(.*?)\n---", readme.read_text(errors="replace") if readme.is_file() else "", re.S)
    try:
        configs = (load_yaml(head[1]) if head else {}).get("configs") or []
        named = [text for c in configs for key in ("data_files", "data_dir") for text in _texts(c.get(key))]
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{readme}: its YAML head cannot be read: {one_line(error)}") from None
    for text in named:
        if "://" in text or "::" in text or Path(text).is_absolute() or ".." in Path(text).parts:
            raise UserError(f"{readme}: data files must stay inside the folder, got {text!r}")


def _texts(value: Any) -> Iterator[str]:
    """Every text inside lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _local(folder: Path, subset: str | None) -> dict[str, "Dataset"]:
    import datasets

    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    files = [] if saved else list(_files_under(folder))
    suffixes = {_suffix(file) for file in files}
    if suffixes & TABLE_SUFFIXES:
        path = str(folder.absolute())  # `load_dataset("parquet")` would mean the format
        _refuse_files_elsewhere(folder)
        builder = datasets.load_dataset_builder(path, name=subset)
        if builder.name == "imagefolder":
            raise UserError(f"{folder} holds data files and, more of them, loose images; move either away")
        if builder.name == "parquet":
            _refuse_other_names(builder.config.data_files)
        return datasets.load_dataset(path, name=subset)
    if subset is not None:
        raise UserError(f"subset {subset}: the folder {folder} has no subsets; remove the setting")
    if saved:
        splits = datasets.load_from_disk(str(folder))
        return splits if isinstance(splits, dict) else {"train": splits}
    if not suffixes & IMAGE_SUFFIXES:
        raise UserError(f"{folder} holds no images: expected {LAYOUTS}; got {len(files)} other files")
    return _image_folder(folder, files)


def _opened(config: ImagesConfig) -> dict[str, "Dataset"]:
    """The source's splits, each with an image; the many errors of `datasets` told in one line."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    source, folder = config.source, Path(config.source).expanduser()
    if folder.is_file():
        raise UserError(f"source {source} is a file: expected a folder or a name on the Hub; give {folder.parent}")
    if not folder.is_dir() and (source[:1] in "/.~" or source.count("/") > 1):
        raise UserError(f"source {source}: no such folder here; expected one of {LAYOUTS}")
    if not (on_main() and sys.stderr.isatty()):  # in a log file theirs would be one line of thousands of carriage returns
        datasets.disable_progress_bars()
        disable_progress_bars()
    try:
        local = folder.is_dir()
        where = f"reading {source}" if local else f"there is no folder {source} here, so the Hub is asked for it"
        with passing_word(f"{where}; the first time takes longest"):
            splits = _local(folder, config.subset) if local else datasets.load_dataset(source, name=config.subset)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged files raise nearly anything in `datasets` and the parsers under it
        unknown = isinstance(error, ConnectionError | FileNotFoundError) and not local
        expected = "no such folder here, and the Hub has or reaches no data set of that name"
        expected = expected if unknown else f"it cannot be read; expected {LAYOUTS}, and an image in every split"
        raise UserError(f"source {source}: {expected} ({one_line(error.__cause__ or error)})") from None
    if "train" not in splits:
        raise UserError(f"source {source} has no split train; its splits are {', '.join(splits)}")
    for name, split in splits.items():
        if len(split) == 0:
            raise UserError(f"split {name} of {source} is empty; expected at least one image")
    return splits


# -------------------------------------------------------------------------------------------------- columns to parts


def _class_names(labels: list[Any], title: str) -> tuple[str, ...] | None:
    """The distinct texts in order; or, for whole numbers, 0 to the highest; none for no labels at all."""
    kinds = {type(label) for label in labels} - {type(None)}
    if not kinds:
        return None
    if kinds not in ({str}, {int}, {bool}):
        got = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"{title}: expected class numbers from 0, or text; got {got}")
    distinct = set(labels) - {None}
    if kinds == {str}:
        return tuple(sorted(distinct))
    if max(distinct) >= MOST_CLASSES:
        raise UserError(f"{title}: expected class numbers from 0, below {MOST_CLASSES:,}; got {max(distinct)}")
    return tuple(map(str, range(max(distinct) + 1))) or None


def _same_names(title: str, names: Sequence[str], expected: Sequence[str]) -> None:
    for name, wanted in zip_longest(names, expected):
        if name != wanted:
            raise UserError(f"{title}: expected the class names of the split train; got {name} in place of {wanted}")


def _numbered(labels: list[Any], class_names: Sequence[str], title: str) -> np.ndarray:
    """(N,) int64: each label's place among the names; -1 for none, or a number below 0."""
    number = {name: i for i, name in enumerate(class_names)} | {i: i for i in range(len(class_names))}
    foreign = {label for label in labels if label not in number and (isinstance(label, str) or (label or 0) > 0)}
    if foreign:
        got = ", ".join(sorted(map(str, foreign))[:3])
        raise UserError(f"{title}: expected the classes of the split train; got {got}, which it has not")
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64)


def _column(features: dict[str, Any], setting: str, named: str | None, kind: type) -> str | None:
    """The column `named`, or the only one whose feature is of this kind."""
    if named is not None and named not in features:
        raise UserError(f"{setting} {named}: there is no such column; there are {', '.join(features)}")
    found = [named] if named else [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        raise UserError(f"{setting} must name one of several {kind.__name__} columns: {', '.join(found)}")
    return found[0] if found else None


def _values(dataset: "Dataset", column: str) -> "pa.ChunkedArray":
    return dataset.select_columns([column]).with_format("arrow")[:][column]


def _encoded(dataset: "Dataset", title: str, column: str) -> tuple[Column, np.ndarray]:
    """The column, undecoded, and the bytes each row takes, 0 for a file that is not there."""
    import pyarrow.compute as pc
    from datasets import Image

    try:
        rows = dataset.select_columns([column]).with_format(None).cast_column(column, Image(decode=False))
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        got = dataset.features.get(column, "no such column")
        raise UserError(f"{title}: expected images in the column {column}; got {got} ({one_line(error)})") from None
    values = _values(rows, column)
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(values, "bytes")), 0).to_numpy().astype(np.int64)
    if not sizes.all():
        paths = pc.struct_field(values, "path").to_pylist()
        for i in np.flatnonzero(sizes == 0):
            sizes[i] = os.path.getsize(paths[i]) if paths[i] and os.path.exists(paths[i]) else 0
    return rows[column], sizes


def _labels(
    dataset: "Dataset", title: str, column: str | None, class_names: tuple[str, ...] | None
) -> tuple[np.ndarray, dict[int, str]]:  # fmt: skip
    """(N,) int64: each row's class, -1 where it has none or hides it, as test splits on the Hub do; and the rows whose label is
    none of the classes."""
    if class_names is None or column is None or column not in dataset.features:
        return np.full(len(dataset), -1), {}
    feature, labels = dataset.features[column], _values(dataset, column).to_pylist()
    if not hasattr(feature, "names"):
        return _numbered(labels, class_names, title), {}
    _same_names(title, feature.names, class_names)
    known, hidden = range(len(class_names)), (None, -1)
    wrong = {
        row: f"its label {label} is none of the {len(class_names)} classes"
        for row, label in enumerate(labels)
        if label not in known and label not in hidden
    }
    return np.array([label if label in known else -1 for label in labels], dtype=np.int64), wrong


def _parts(config: ImagesConfig) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """The splits of a source that `datasets` reads, and its class names."""
    from datasets import ClassLabel, Image

    splits = _opened(config)
    train = splits["train"]
    image_column = _column(train.features, "image_column", config.image_column, Image)
    label_column = _column(train.features, "label_column", config.label_column, ClassLabel)
    if image_column is None:
        raise UserError(f"image_column must name one of {', '.join(train.features)}: none of them has the type Image")
    class_names = None
    if label_column is not None:
        class_names = tuple(getattr(train.features[label_column], "names", ())) or _class_names(
            _values(train, label_column).to_pylist(), f"label_column {label_column}"
        )
    parts = {}
    for name, dataset in splits.items():
        title = f"split {name} of {config.source}"
        labels, wrong = _labels(dataset, title, label_column, class_names)
        parts[str(name)] = Part(title, *_encoded(dataset, title, image_column), labels, wrong)
    return parts, class_names


def _digits(config: ImagesConfig) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The last 297 digits are, most of them, by other writers: they are the test split."""
    from sklearn.datasets import load_digits

    for setting in ("subset", "image_column", "label_column"):
        if getattr(config, setting) is not None:
            raise UserError(f"{setting} says nothing about the built-in digits; remove it")
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # from 0..16
    column = np.array([{"bytes": b"P5 8 8 255\n" + image.tobytes(), "path": None} for image in grey], dtype=object)
    sizes, labels = np.array([len(row["bytes"]) for row in column]), digits.target.astype(np.int64)
    parts = {}
    for name, rows in {"train": slice(None, 1500), "test": slice(1500, None)}.items():
        parts[name] = Part(f"split {name} of digits", column[rows], sizes[rows], labels[rows], {})
    return parts, tuple("0123456789")


def open_source(config: ImagesConfig) -> Source:
    """Return the splits of a source, its class names, and what of it is not read.

    Raises:
        UserError: there is no such source or column, a split is empty, or class names disagree between splits.
    """
    if config.source == "digits":
        return Source(*_digits(config), (), None)
    folder = Path(config.source).expanduser()
    return Source(*_parts(config), (), folder.resolve() if folder.is_dir() else None)


def fingerprint(parts: dict[str, Part], class_names: tuple[str, ...] | None) -> str:
    """SHA-256 over every row's size and label, and the bytes of up to 256 rows a split.

    The fingerprints of `datasets` change with the folder's place and with the time of a copy; this one does not.
    """
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for name, part in sorted(parts.items()):
        digest.update(name.encode() + part.sizes.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
        there = np.flatnonzero(part.sizes)
        some = there[np.linspace(0, len(there) - 1, min(len(there), FINGERPRINTED)).astype(np.int64)]
        for encoded in part.column[some]:
            digest.update(file_of(encoded))
    return digest.hexdigest()
