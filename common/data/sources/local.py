"""A folder as a source: what `save_to_disk` wrote, data files, or image files; every file in it is read or named."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from smalti.common.data.config import ImagesConfig
from smalti.common.data.sources.cache import prepare_datasets
from smalti.common.data.sources.class_names import class_names, numbered
from smalti.common.data.sources.columns import Files, column_parts
from smalti.common.data.sources.files import (
    IMAGE_SUFFIXES,
    TABLES,
    FolderFiles,
    find_files,
    home_of,
    is_metadata,
    other_formats,
    pictures_among,
    suffix,
)
from smalti.common.data.sources.image_folder import Labelled, find_splits, label_splits
from smalti.common.data.sources.metadata import metadata_rows
from smalti.common.data.sources.part import Left, Part, Source, as_unread
from smalti.common.data.sources.patterns import SubsetInfo, matching, read_readme_head, subset_info
from smalti.common.data.sources.splits import TO_SAY_SO, all_there, rename_splits, split_files, split_names, with_train
from smalti.common.data.sources.tables import is_saved, read_saved, read_tables
from smalti.common.errors import UserError

LAYOUTS = "Parquet, Arrow, WebDataset .tar shards, or image files (class folders, or metadata.jsonl)"


class _Opened(NamedTuple):
    parts: dict[str, Part]
    class_names: tuple[str, ...] | None
    left: Left
    notes: list[str]


class _Folder(NamedTuple):
    """A folder to read: its files, and the settings that choose among them."""

    root: Path
    files: list[str]  # all there are, relative to the root
    chosen: dict[str, list[str]] | None  # those of each split, where the settings or a README say so
    config: ImagesConfig
    homes: tuple[Path, ...]  # that a table's images may lie in

    @property
    def wanted(self) -> list[str]:
        return self.files if self.chosen is None else sorted({file for files in self.chosen.values() for file in files})


def open_folder(folder: Path, config: ImagesConfig) -> Source:
    """Return a folder's splits, its class names and its unread files."""
    found = find_files(folder, config.reach)
    if is_saved(folder):
        opened = _saved(folder, found, config)
        return Source(opened.parts, opened.class_names, as_unread({**found.left, **opened.left}), folder.resolve())
    readme = folder / "README.md"
    head = subset_info(read_readme_head(readme, folder / ".huggingface.yaml"), config.subset, str(readme))
    given = config.data_files.given()
    base = "" if given or PurePosixPath(head.folder) == PurePosixPath() else f"{PurePosixPath(head.folder)}/"
    files = [file.removeprefix(base) for file in found.files if file.startswith(base)]
    patterns = given or head.patterns
    chosen = matching(files, patterns, f"data_files of {folder / base}") if patterns else None
    here = _Folder(folder / base, files, chosen, config, home_of(folder.resolve()))
    tables = _table_files(here)
    opened = _tables(here, tables, head) if tables else _images(here)
    left = {kind: [base + name for name in names] for kind, names in opened.left.items()}
    outside = [file for file in found.files if not file.startswith(base)]
    left |= {f"files outside {base}, of which the README speaks": outside}
    unnamed = [base + file for file in sorted(set(files) - set(here.wanted)) if tables or not is_metadata(file)]
    left |= {f"files that {'images.data_files' if given else 'the README'} does not name": unnamed}
    notes = [*opened.notes, *_in_several(chosen or {})]
    return Source(opened.parts, opened.class_names, as_unread({**found.left, **left}), folder.resolve(), tuple(notes))


def _in_several(chosen: Mapping[str, list[str]]) -> list[str]:
    counts = Counter(file for files in chosen.values() for file in files)
    several = sorted(file for file, count in counts.items() if count > 1)
    return [f"{len(several)} files are in several splits, such as {several[0]}"] if several else []


def _table_files(here: _Folder) -> list[str]:
    """Return the data files that are to be read; none where the folder is one of image files.

    Raises:
        UserError: it holds both, and more loose images than data files.
    """
    images = [file for file in here.wanted if suffix(file) in IMAGE_SUFFIXES]
    tables = [file for file in here.wanted if suffix(file) in TABLES and not (images and is_metadata(file))]
    if tables and len(images) > len(tables):
        raise UserError(
            f"{here.root} holds {len(tables)} data files, such as {tables[0]}, and, more of them, {len(images)} loose "
            f"images, such as {images[0]}; move either away, or {TO_SAY_SO}"
        )
    return tables


def _tables(here: _Folder, tables: list[str], head: SubsetInfo) -> _Opened:
    prepare_datasets()
    title, names = str(here.root), here.config.split.given()
    silent: list[str] = []
    notes: list[str] = []
    if here.chosen is None:
        files, silent, notes = split_files(tables, split_names(names), None if "train" in names else "train")
        files = all_there(files, names, title)
    else:
        files = {split: [file for file in several if file in set(tables)] for split, several in here.chosen.items()}
    splits = read_tables(here.root, {split: several for split, several in files.items() if several}, head.info, title)
    left: Left = {"data files of no split that images.split names": silent}
    if here.chosen is not None:
        splits, left = rename_splits(splits, names)
    beside = [file for file in here.wanted if file not in set(tables)]
    left |= {"images beside the data files": [file for file in beside if suffix(file) in IMAGE_SUFFIXES]}
    left |= other_formats([file for file in beside if suffix(file) not in IMAGE_SUFFIXES])
    return _Opened(*column_parts(with_train(splits, title), here.config, here.root, here.homes), left, notes)


def _saved(folder: Path, found: FolderFiles, config: ImagesConfig) -> _Opened:
    if config.subset is not None or config.data_files.given():
        what = "data_files" if config.subset is None else f"subset {config.subset}"
        raise UserError(
            f"{what}: the folder {folder} was written by save_to_disk and has no such choice; remove the setting"
        )
    prepare_datasets()
    splits, left = read_saved(folder, found, config.reach)
    splits, beside = rename_splits(splits, config.split.given())
    homes = home_of(folder.resolve())
    return _Opened(*column_parts(with_train(splits, str(folder)), config, folder, homes), {**left, **beside}, [])


def _images(here: _Folder) -> _Opened:
    root, config = here.root, here.config
    if config.image_column not in (None, "image"):
        raise UserError(f"image_column {config.image_column}: image files have no such column; remove the setting")
    rows = metadata_rows(root, here.files, config.label_column or "label")
    every = [row for several in rows.values() for row in several]
    if config.label_column not in (None, "label") and all(row.label is None for row in every):
        raise UserError(f"label_column {config.label_column}: no metadata file of {root} has a label in such a column")
    named = {row.file for row in every}
    unknown = [file for file in here.wanted if file not in named and not is_metadata(file)]
    images, others = pictures_among(root, unknown)
    images = sorted({*images, *(named & set(here.wanted))})
    if not images:
        raise UserError(f"{root} holds no images: expected {LAYOUTS}; got {len(others)} other files")
    names = config.split.given()
    if here.chosen is None:
        found = find_splits(images, rows, split_names(names), str(root), chosen=bool(names))
        splits = all_there(found.splits, names, str(root))
    else:
        there = set(images)
        chosen = {split: [file for file in files if file in there] for split, files in here.chosen.items()}
        found = label_splits({split: files for split, files in chosen.items() if files}, rows, str(root))
        splits, beside = rename_splits(found.splits, names)
        found.left.update(beside)
    parts, classes = _image_parts(root, with_train(splits, str(root)), config.source)
    return _Opened(parts, classes, {**found.left, **other_formats(others)}, found.notes)


def _image_parts(
    root: Path, splits: Mapping[str, Labelled], source: str
) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    names = class_names(splits["train"].labels, f"labels of {source}")
    parts = {}
    for name, (files, labels) in splits.items():
        title, column = f"split {name} of {source}", Files(root, files)
        numbers = numbered(labels, names, title) if names else np.full(len(files), -1)
        parts[name] = Part(title, column, column.sizes(), numbers, {})
    return parts, names
