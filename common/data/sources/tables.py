"""Data files of a folder: Parquet, Arrow, WebDataset .tar shards, and what `save_to_disk` wrote.

The split of each file is decided here: `datasets` gets files, never a folder or a pattern to search.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.common.data.sources.class_names import refuse_other_names
from smalti.common.data.sources.files import TABLES, FolderFiles, hold_inside, home_of, read_source_text, suffix
from smalti.common.data.sources.part import Left, one_line
from smalti.common.data.sources.splits import TO_SAY_SO, train_first
from smalti.common.errors import UserError

if TYPE_CHECKING:  # half a second, and the digits do without
    from datasets import Dataset, Features

MOST_STATE = 2**24  # bytes of a JSON file about a data set
SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`: of several splits, of one


def is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def read_saved(folder: Path, found: FolderFiles, reach: str) -> tuple[dict[str, "Dataset"], Left]:
    """Return the splits that `save_to_disk` wrote, and the other files of the folder."""
    import datasets

    kept = _saved_files(folder)
    for file in kept:
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is no file, but the folder's state names it; copy the folder whole")
        if reach == "folder":
            hold_inside(folder / file, home_of(folder.resolve()), f"the data file {folder / file}")
    splits = datasets.load_from_disk(str(folder))
    left = {"files that the saved data set does not name": [file for file in found.files if file not in kept]}
    return (splits if isinstance(splits, dict) else {"train": splits}), left


def _saved_files(folder: Path) -> set[str]:
    """Return the data files that the states name. Raises `UserError` for a name that leads elsewhere."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():  # the order of `load_from_disk`
        return set(_named_in(folder))
    splits = _json(folder / "dataset_dict.json").get("splits")
    if not isinstance(splits, list):
        raise UserError(f"{folder / 'dataset_dict.json'}: expected a list of splits, got {splits!r}")
    for split in splits:
        _refuse_no_name(split, folder / "dataset_dict.json")
    return {f"{split}/{file}" for split in splits for file in _named_in(folder / split)}


def _named_in(folder: Path) -> list[str]:
    _json(folder / "dataset_info.json")  # which `datasets` reads without a bound
    state = folder / "state.json"
    files = _json(state).get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise UserError(f"{state}: expected a list of data files, got {str(files)[:80]}")
    for file in files:
        _refuse_no_name(file.get("filename"), state)
    return [file["filename"] for file in files]


def _refuse_no_name(name: Any, where: Path) -> None:
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0") or "::" in name:
        raise UserError(f"{where}: expected a name in its folder, got {name!r}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_source_text(path, MOST_STATE))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


# ------------------------------------------------------------------------------------------- Parquet, Arrow and tar


def table_format(files: Sequence[str], title: str) -> str:
    """Return the `datasets` builder that reads these files. Raises `UserError` where they are of several formats."""
    suffixes = sorted({suffix(file) for file in files})
    if len(suffixes) > 1:
        raise UserError(f"{title} holds data files of several formats, {', '.join(suffixes)}; {TO_SAY_SO}")
    return TABLES[suffixes[0]]


def read_tables(
    root: Path, splits: Mapping[str, list[str]], info: Mapping[str, Any] | None, title: str
) -> dict[str, "Dataset"]:
    """Return the splits in these data files.

    Args:
        splits: the files of each, relative to the root.
        info: the `dataset_info` that a README has of them, whose features go before the files' own.

    Raises:
        UserError: two files number their classes differently; `datasets` would read all by the names of the first.
    """
    import datasets
    from datasets.data_files import DataFilesList

    kind = table_format([file for files in splits.values() for file in files], title)
    paths = {split: [str((root / file).absolute()) for file in files] for split, files in train_first(splits).items()}
    for path in (path for several in paths.values() for path in several):
        if "::" in path:
            raise UserError(f"{path}: `datasets` takes :: in a path for a chain of protocols; rename it")
    features = _features(info)
    _refuse_other_names(kind, paths, features)
    data_files = {split: DataFilesList(files, [_version(file) for file in files]) for split, files in paths.items()}
    return datasets.load_dataset(kind, data_files=data_files, features=features)


def _version(path: str) -> tuple[str, str]:
    """Return what tells a changed file from the cached one of `datasets`: its size and time."""
    status = os.stat(path)
    return str(status.st_size), str(status.st_mtime_ns)


def _features(info: Mapping[str, Any] | None) -> "Features | None":
    from datasets import Features

    found = (info or {}).get("features")
    if not found:
        return None
    return Features._from_yaml_list(found) if isinstance(found, list) else Features.from_dict(found)


def _refuse_other_names(kind: str, splits: Mapping[str, Sequence[str]], features: "Features | None") -> None:
    from datasets import ClassLabel, Features

    expected = {name: feature.names for name, feature in (features or {}).items() if isinstance(feature, ClassLabel)}
    for path in (path for files in splits.values() for path in files if kind != "webdataset"):
        for column, feature in Features.from_arrow_schema(_schema(kind, path)).items():
            if isinstance(feature, ClassLabel):
                first = expected.setdefault(column, feature.names)
                refuse_other_names(f"column {column} of {path}", feature.names, first)


def _schema(kind: str, path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        return pq.read_schema(path)
    with pa.memory_map(path) as file:
        try:
            return pa.ipc.open_stream(file).schema
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_file(file).schema
