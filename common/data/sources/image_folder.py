"""A folder of image files: the split and the class of each.

cat/0.png  dog/1.png                  classes
train/cat/0.png  test/dog/1.png       splits and classes
pictures/cat/0.png  pictures/dog/...  a lone folder around either is entered
0.png  metadata.jsonl                 the labels stand in a table
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smalti.common.data.sources.class_names import normal
from smalti.common.data.sources.metadata import Row
from smalti.common.data.sources.part import Left
from smalti.common.data.sources.splits import split_of, train_first
from smalti.common.errors import UserError

OR_SAY_SO = "say what it is with images.split, as --images.split.train FOLDER, or with images.data_files"


class Labelled(NamedTuple):
    files: list[str]  # relative to the source
    labels: list[Any]  # a name or a number each, none for no class


class LabelledSplits(NamedTuple):
    """The images of each split with their labels, and those that are left out."""

    splits: dict[str, Labelled]
    left: Left
    notes: list[str]


class Splits(NamedTuple):
    files: dict[str, dict[str, str]]  # split -> file -> its path from the split's folder
    left: Left
    notes: list[str]


def find_splits(
    images: Sequence[str],
    tables: Mapping[str, Sequence[Row]],
    names: Mapping[str, str],
    title: str,
    chosen: bool = False,
) -> LabelledSplits:
    """Return the splits and labels of image files.

    Args:
        images: their paths from the source's folder, in order.
        tables: the rows of each metadata file.
        names: which split a folder's name means; `chosen` where the user said so, and no other folder is a split's.

    Raises:
        UserError: a folder may be a split or a class, or more images lie beside the class folders than in them.
    """
    return _labelled(_split_folders(images, names, title, chosen, bool(tables)), tables, title)


def label_splits(files: Mapping[str, Sequence[str]], tables: Mapping[str, Sequence[Row]], title: str) -> LabelledSplits:
    """Return the splits and labels of image files whose splits are known."""
    common = {split: _common_folder(several) for split, several in files.items()}
    inner = {split: {file: file.removeprefix(common[split]) for file in several} for split, several in files.items()}
    return _labelled(Splits(inner, {}, []), tables, title)


def top(path: str) -> str | None:
    """Return the first folder of a path; none for a file that stands in no folder."""
    return path.partition("/")[0] if "/" in path else None


def _common_folder(files: Sequence[str]) -> str:
    """Return the folder that all of them lie in, as a prefix."""
    first = files[0].split("/")[:-1]
    while first and not all(file.startswith("/".join(first) + "/") for file in files):
        first.pop()
    return "/".join(first) + "/" if first else ""


def _wrapping(paths: Sequence[str], names: Mapping[str, str]) -> str:
    """Return the folders around all others, such as "pictures/"; "" unless several folders or a split lie in them."""
    prefix = ""
    while True:
        tops = {top(path.removeprefix(prefix)) for path in paths}
        if None in tops or not tops:
            return ""
        if len(tops) > 1 or split_of(str(min(map(str, tops))), names):
            return prefix
        prefix += f"{tops.pop()}/"


# ------------------------------------------------------------------------------------------------------------ splits


def _split_folders(images: Sequence[str], names: Mapping[str, str], title: str, chosen: bool, tables: bool) -> Splits:
    prefix = _wrapping(images, names)
    inner = {file: file.removeprefix(prefix) for file in images}
    notes = [f"the folder {prefix} around all others is entered"] if prefix else []
    tops = {folder: split_of(folder, names) for folder in map(top, inner.values()) if folder is not None}
    if not _are_splits(inner, tops, title, chosen, tables, notes):
        return Splits({"train": inner}, {}, notes)
    splits: dict[str, dict[str, str]] = {}
    beside: list[str] = []
    for file, path in inner.items():
        split = tops.get(str(top(path)))
        if split is None or top(path) is None:
            beside.append(file)
        else:
            splits.setdefault(split, {})[file] = path.partition("/")[2]
    return Splits(splits, {"images beside the folders of the splits": beside}, notes)


def _are_splits(
    inner: Mapping[str, str], tops: Mapping[str, str | None], title: str, chosen: bool, tables: bool, notes: list[str]
) -> bool:
    """Return whether the topmost folders are splits, not classes; a class may be called train or test."""
    splits = {split for split in tops.values() if split}
    others = {folder for folder, split in tops.items() if split is None}
    if chosen or not splits or not others or (len(splits) > 1 and "train" in splits):
        return chosen or bool(splits)
    named = sorted(set(tops) - others)[0]
    below = {part for folder in set(tops) - others for part in _folders_in(folder, inner.values())}
    beside = ", ".join(sorted(others)[:3])
    if tables and splits != {"train"}:  # the table says the classes, and to train on a test split is the worst
        raise UserError(f"{title}: the folder {named} beside {beside} may be a split or not; {OR_SAY_SO}")
    if not tables and (below & others or (below and splits == {"train"})):
        raise UserError(f"{title}: the folder {named} beside {beside} may be a split or a class; {OR_SAY_SO}")
    taken = "read as train like the others" if tables else "taken for a class"
    notes.append(f"the folder {named} is {taken}, as {sorted(others)[0]} beside it is no split; else {OR_SAY_SO}")
    return False


def _folders_in(folder: str, paths: Any) -> set[str]:
    inside = (path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/"))
    return {inner for inner in map(top, inside) if inner is not None}


# ------------------------------------------------------------------------------------------------------------ labels


def _labelled(splits: Splits, tables: Mapping[str, Sequence[Row]], title: str) -> LabelledSplits:
    left: Left = {kind: list(files) for kind, files in splits.left.items()}
    notes = list(splits.notes)
    train = list(splits.files.get("train", {}).values())
    entered = _wrapping(train, {})
    if entered:
        notes.append(f"the folder {entered} around all others of the split train is entered")
    found = {}
    for split in train_first({split: [] for split in splits.files}):
        inner = splits.files[split]
        if entered and all(path.startswith(entered) for path in inner.values()):
            inner = {file: path.removeprefix(entered) for file, path in inner.items()}
        rows = _rows_of(inner, tables)
        if rows is None:
            where = f"split {split} of {title}" if len(splits.files) > 1 else title
            found[split] = _by_folder(inner, left, notes, where)
        else:
            named = {row.file for row in rows}
            found[split] = Labelled([row.file for row in rows], [row.label for row in rows])
            unnamed = [file for file in inner if file not in named]
            left.setdefault("images that no metadata file names", []).extend(unnamed)
    classes = set(found["train"].labels) if "train" in found and not tables else set()
    if len(classes) == 1 and None not in classes:
        only = classes.pop()
        notes.append(f"all images of the split train lie in the one folder {only}, which is taken for their class")
    return LabelledSplits(found, {kind: files for kind, files in left.items() if files}, notes)


def _rows_of(inner: Mapping[str, str], tables: Mapping[str, Sequence[Row]]) -> list[Row] | None:
    """Return the metadata rows of these files; None if no table stands in their folder or names one of them."""
    rows = [row for several in tables.values() for row in several if row.file in inner]
    folders = {file.removesuffix(path) for file, path in inner.items()}
    return rows if rows or any(table.startswith(tuple(folders)) for table in tables) else None


def _by_folder(inner: Mapping[str, str], left: Left, notes: list[str], title: str) -> Labelled:
    """Return files with their topmost folder as their class."""
    classes = {file: top(path) for file, path in inner.items()}
    loose = [file for file, folder in classes.items() if folder is None]
    within = len(classes) - len(loose)
    if loose and within:
        if len(loose) >= within:
            raise UserError(
                f"{title} holds {within} images in class folders and beside them {len(loose)} images of no class, such "
                f"as {loose[0]}; move these, or {OR_SAY_SO}"
            )
        left.setdefault("images of no class beside the class folders", []).extend(loose)
        classes = {file: folder for file, folder in classes.items() if folder is not None}
    nested = [file for file in classes if inner[file].count("/") > 1]
    if nested:
        notes.append(
            f"{len(nested)} images in folders inside class folders are of the outer class, such as {nested[0]}"
        )
    return Labelled(list(classes), [None if folder is None else normal(folder) for folder in classes.values()])
