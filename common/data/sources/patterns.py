"""Files named by patterns: `images.data_files`, and the `configs` in a README.md or .huggingface.yaml.

Patterns are matched against the files that were found in the folder, so that they reach nothing else.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from smalti.common.config import MOST_YAML, load_yaml
from smalti.common.data.sources.files import read_source_text
from smalti.common.data.sources.part import one_line
from smalti.common.errors import UserError

MOST_README = 2**24  # bytes
HEAD = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r\n|\n|$)", re.S)  # where huggingface_hub finds it


class SubsetInfo(NamedTuple):
    """The files and features of one subset, as the YAML says."""

    patterns: dict[str, list[str]] | None  # split -> patterns; none where it names no files
    folder: str  # where they lie, "" for the whole
    info: dict[str, Any] | None  # its `dataset_info`


def matching(files: Sequence[str], patterns: Mapping[str, Sequence[str]], title: str) -> dict[str, list[str]]:
    """Return the files of each split that match its patterns. Raises `UserError` for a pattern without a match."""
    from fsspec.utils import glob_translate

    splits: dict[str, list[str]] = {}
    for split, several in patterns.items():
        found: set[str] = set()
        for pattern in several:
            refuse_elsewhere(pattern, title)
            plain = str(PurePosixPath(pattern))
            matches = {plain} & set(files) or set(filter(re.compile(glob_translate(plain)).match, files))
            if not matches:
                raise UserError(f"{title}: {pattern!r} matches none of its {len(files)} files")
            found |= matches
        splits[split] = sorted(found)
    return splits


def refuse_elsewhere(pattern: str, title: str) -> None:
    """Raise `UserError` where a pattern leads out of the folder, to this machine or to the network."""
    path = PurePosixPath(pattern)
    if "://" in pattern or "::" in pattern or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{title}: data files must stay inside the folder, got {pattern!r}")


def refuse_configs(configs: Iterable[Mapping[str, Any]], title: str) -> None:
    """Raise `UserError` where one of a README's `configs` names files that lie elsewhere."""
    for config in configs:
        for pattern in (*_texts(config.get("data_files")), *_texts(config.get("data_dir"))):
            refuse_elsewhere(pattern, title)


def read_readme_head(readme: Path, standalone: Path) -> dict[str, Any]:
    """Return the YAML head of a README, overridden by that of the file which stands for it."""
    head: dict[str, Any] = {}
    if readme.is_file():
        found = HEAD.match(read_source_text(readme, MOST_README, "replace").lstrip())
        head |= _mapping(found[1], readme) if found else {}
    if standalone.is_file():
        head |= _mapping(read_source_text(standalone, MOST_YAML), standalone)
    return head


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        if len(text) > MOST_YAML:
            raise ValueError(f"it has {len(text)} characters; no more than {MOST_YAML} are read")
        found = load_yaml(text) or {}
        if not isinstance(found, dict):
            raise ValueError(f"expected `key: value` lines, got {type(found).__name__}")
        return found
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its YAML head cannot be read: {one_line(error)}") from None


def subset_info(head: Mapping[str, Any], subset: str | None, title: str) -> SubsetInfo:
    """Return what a YAML head says of a subset, or of the only or default one."""
    try:
        configs = {str(config.get("config_name", "default")): config for config in head.get("configs") or []}
        refuse_configs(configs.values(), title)
        listed = head.get("dataset_info") or []
        listed = listed if isinstance(listed, list) else [listed]
        infos = {str(info.get("config_name", "default")): info for info in listed}
        name = subset or _default(configs or infos, title)
        if subset is not None and subset not in (configs or infos):
            there = ", ".join(configs or infos) or "none"
            raise UserError(f"subset {subset}: {title} names no such subset; it names {there}")
        config = configs.get(name, {})
        info = infos.get(name) or (next(iter(infos.values())) if len(infos) == 1 else None)
        files = config.get("data_files")
        return SubsetInfo(None if files is None else _by_split(files), str(config.get("data_dir") or ""), info)
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{title}: its `configs` cannot be read: {one_line(error)}") from None


def _default(subsets: Mapping[str, Mapping[str, Any]], title: str) -> str:
    marked = [name for name, subset in subsets.items() if subset.get("default")]
    if marked or "default" in subsets or not subsets:
        return marked[0] if marked else "default"
    if len(subsets) > 1:
        raise UserError(f"{title} has several subsets: {', '.join(subsets)}; name one with images.subset")
    return next(iter(subsets))


def _by_split(files: Any) -> dict[str, list[str]]:
    """Return the patterns of each split, from any of the forms that `datasets` takes."""
    if isinstance(files, dict):
        return {str(split): list(_texts(paths)) for split, paths in files.items()}
    if isinstance(files, list) and any(isinstance(each, dict) for each in files):
        return {str(each["split"]): list(_texts(each["path"])) for each in files}
    return {"train": list(_texts(files))}


def _texts(value: Any) -> Iterator[str]:
    """Yield every text inside lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
