"""The split of a folder or a data file, which its whole name says in any letter case, or nothing does.

`train/`, `Training/`, `val2017/`, `test.parquet` and `train-00000-of-00005.parquet` name a split; `blood_test.parquet`
does not: a word inside a longer name is part of that name. (The names are those that `datasets` knows.)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from smalti.common.data.sources.part import Left
from smalti.common.errors import UserError

S = TypeVar("S")
VALIDATION_NAMES = ("validation", "val", "valid", "dev")
KEYWORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
NUMBERED = re.compile(r"(.+?)[-_. ]?\d+(?:[-_. ]of[-_. ]\d+)?(?:[-_.][0-9a-f]{16})?", re.I)
TO_SAY_SO = "say which with images.data_files, as --images.data_files.train 'PATTERN'"


def split_names(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the split that each name means: the keywords, or for a chosen split its chosen name."""
    kept = {name: split for name, split in KEYWORDS.items() if split not in chosen}
    return kept | {name.casefold(): split for split, name in chosen.items()}


def split_of(name: str, names: Mapping[str, str]) -> str | None:
    """Return the split of a folder's name or a data file's stem, with or without the number of a shard."""
    folded = name.casefold()
    if folded in names:
        return names[folded]
    numbered = NUMBERED.fullmatch(folded)
    return names.get(numbered[1]) if numbered else None


def split_of_file(file: str, names: Mapping[str, str]) -> str | None:
    """Return the split that a data file's stem or one of its folders names. Raises `UserError` where they disagree."""
    path = PurePosixPath(file)
    said = {split_of(name, names) for name in (path.stem, *path.parts[:-1])} - {None}
    if len(said) > 1:
        raise UserError(f"{file} names several splits, {' and '.join(sorted(map(str, said)))}; {TO_SAY_SO}")
    return said.pop() if said else None


def split_files(
    files: Sequence[str], names: Mapping[str, str], default: str | None = "train"
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Return the data files of each split, those of none, and notes on both.

    Args:
        default: the split of files whose names say none.
    """
    splits: dict[str, list[str]] = {}
    silent = []
    for file in files:
        split = split_of_file(file, names)
        if split is None:
            silent.append(file)
        if split or default:
            splits.setdefault(str(split or default), []).append(file)
    if default is None:
        return splits, silent, []
    misleading = [file for file in silent if any(word in names for word in _words(file))]
    if not silent or not (misleading or len(silent) < len(files)):
        return splits, [], []
    if len(silent) == 1:
        told = f"1 data file whose whole name is no split's is read as {default}: {silent[0]}"
    else:
        example = (misleading or silent)[0]
        told = f"{len(silent)} data files whose whole name is no split's are read as {default}, such as {example}"
    return splits, [], [f"{told}; to change that, {TO_SAY_SO}"]


def _words(file: str) -> Iterator[str]:
    return (word for word in re.split(r"[^a-z]+", file.casefold()) if word)


def train_first(splits: Mapping[str, S]) -> dict[str, S]:
    """Return the splits with train first, whose class names count, then the others by name."""
    return {name: splits[name] for name in sorted(splits, key=lambda name: (name != "train", name))}


def all_there(splits: dict[str, S], names: Mapping[str, str], title: str) -> dict[str, S]:
    """Return the splits. Raises `UserError` if one that was asked for by name is missing."""
    for split, name in names.items():
        if split not in splits:
            raise UserError(f"images.split.{split} {name}: {title} has no folder or data file of that name")
    return splits


def rename_splits(splits: Mapping[str, S], names: Mapping[str, str]) -> tuple[dict[str, S], Left]:
    """Return the splits under the names that `images.split` gives them, and the rows that give way."""
    for split, name in names.items():
        if name not in splits:
            raise UserError(f"images.split.{split} {name}: there is no such split; there are {', '.join(splits)}")
    found = {split: splits[name] for split, name in names.items()}
    others = {name: split for name, split in splits.items() if name not in names.values()}
    replaced = [name for name in others if name in found]
    left = {f"rows of the split {name}, in whose place images.split puts another": [name] for name in replaced}
    return found | {name: split for name, split in others.items() if name not in found}, left


def with_train(splits: Mapping[str, S], title: str) -> dict[str, S]:
    if "train" not in splits:
        there = ", ".join(splits)
        raise UserError(
            f"source {title} has no split train; its splits are {there}; say which one is, as --images.split.train NAME"
        )
    return dict(train_first(splits))
