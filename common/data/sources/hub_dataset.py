"""A data set on the Hugging Face Hub: its files are listed, split by the rule for folders, and read by `datasets`."""

import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smalti.common.data.sources.files import IMAGE_SUFFIXES, SIDE_FILES, TABLES, base_name, is_metadata, suffix
from smalti.common.data.sources.part import Left
from smalti.common.data.sources.patterns import matching, read_readme_head, refuse_configs
from smalti.common.data.sources.splits import (
    all_there,
    rename_splits,
    split_files,
    split_names,
    split_of_file,
    train_first,
)
from smalti.common.data.sources.tables import table_format
from smalti.common.errors import UserError

if TYPE_CHECKING:  # half a second, and the digits do without
    from datasets import Dataset, DatasetBuilder

NOT_ASKED = "the Hub is not reached: the data set is read as it was kept, and what of it is not read cannot be said"
PATIENCE = 10  # seconds until the Hub is held unreachable


def read_hub(
    source: str, subset: str | None, patterns: Mapping[str, list[str]], chosen: Mapping[str, str]
) -> tuple[dict[str, "Dataset"], Left, list[str]]:
    """Return the splits of a data set, its files that are not read, and notes on it.

    Raises:
        UserError: there is none of that name, or the Hub is not reached and patterns are given, or its README names
            files that lie elsewhere.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise UserError(f"source {source}: no such folder here, and no name on the Hub either ({error})") from None
    try:
        _raise_offline()
        info = HfApi().dataset_info(source, timeout=PATIENCE)
    except Exception as error:  # of the network under it, of the Hub, or offline
        splits, left = rename_splits(_kept(source, subset, patterns, error), chosen)
        return splits, left, [NOT_ASKED]
    files = sorted(sibling.rfilename for sibling in info.siblings or [])
    configured = _refuse_files_elsewhere(source, info.sha, files)
    data_files = matching(files, patterns, f"data_files of {source}") if patterns else {}
    notes: list[str] = []
    if not (data_files or configured or subset):
        default = None if "train" in chosen else "train"
        data_files, notes = _by_names(files, split_names(chosen), default, source)
        data_files, chosen = all_there(data_files, chosen, source), {}
    builder = _builder(source, subset, train_first(data_files))
    read = {file for several in _read_of(builder, source).values() for file in several}
    builder.download_and_prepare()
    splits, left = rename_splits(dict(builder.as_dataset()), chosen)
    others = [file for file in files if file not in read and base_name(file).lower() not in SIDE_FILES]
    return splits, {"files of the Hub that are in none of the splits": others, **left}, notes


def _by_names(
    files: list[str], names: Mapping[str, str], default: str | None, source: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the files of each split by the rule for folders: of data files, or of images where there are more."""
    images = [file for file in files if suffix(file) in IMAGE_SUFFIXES]
    tables = [file for file in files if suffix(file) in TABLES and not (images and is_metadata(file))]
    if len(tables) >= max(1, len(images)):
        table_format(tables, f"source {source}")
        splits, _, notes = split_files(tables, names, default)
        return splits, notes
    splits = {}
    for file in [*images, *(file for file in files if suffix(file) == ".zip")]:
        split = split_of_file(file if suffix(file) == ".zip" else f"{file.rpartition('/')[0]}/", names) or default
        if split:
            splits.setdefault(split, []).append(file)
    for file in filter(is_metadata, files):
        split = split_of_file(f"{file.rpartition('/')[0]}/", names)
        for several in splits.values() if split is None else [splits.setdefault(split, [])]:
            several.append(file)
    return splits, []


def _builder(source: str, subset: str | None, data_files: Mapping[str, list[str]]) -> "DatasetBuilder":
    """Return the builder that reads these files.

    Where `datasets` chooses the same files by itself it is given none, so that it finds them again offline.
    """
    import datasets

    builder = datasets.load_dataset_builder(source, name=subset)
    if not data_files or _read_of(builder, source) == {split: sorted(files) for split, files in data_files.items()}:
        return builder
    escaped = {split: list(map(glob.escape, files)) for split, files in data_files.items()}
    return datasets.load_dataset_builder(source, name=subset, data_files=escaped)


def _read_of(builder: "DatasetBuilder", source: str) -> dict[str, list[str]]:
    """Return the files of each split that a builder reads. Raises `UserError` for one that is not of the data set."""
    found: dict[str, list[str]] = {}
    for split, urls in (builder.config.data_files or {}).items():
        for url in urls:
            if not url.startswith(f"hf://datasets/{source}@"):
                raise UserError(f"source {source}: its data files must be its own, got {url!r}")
            found.setdefault(str(split), []).append(url.partition("@")[2].partition("/")[2])
    return {split: sorted(files) for split, files in found.items()}


def _refuse_files_elsewhere(source: str, revision: str | None, files: list[str]) -> bool:
    """Return whether README.md or .huggingface.yaml names the files to read; refuse those elsewhere.

    Raises:
        UserError: they name files outside the data set.
    """
    from huggingface_hub import hf_hub_download

    there = [name for name in ("README.md", ".huggingface.yaml") if name in files]
    paths = {name: Path(hf_hub_download(source, name, repo_type="dataset", revision=revision)) for name in there}
    head = read_readme_head(paths.get("README.md", Path("/nowhere")), paths.get(".huggingface.yaml", Path("/nowhere")))
    configs = head.get("configs") or []
    refuse_configs(configs, f"source {source}")
    return bool(configs)


# ---------------------------------------------------------------------------------------------------- without the Hub


def _raise_offline() -> None:
    import datasets
    from huggingface_hub import constants

    if datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")


def _kept(
    source: str, subset: str | None, patterns: Mapping[str, list[str]], reason: Exception
) -> dict[str, "Dataset"]:
    """Return what `datasets` keeps of an earlier visit; without one, do not ask it: it would try the Hub again.

    Raises:
        UserError: patterns are given. Which files were kept is not known by name, so all would be read.
    """
    import datasets

    cache = Path(os.path.expanduser(datasets.config.HF_DATASETS_CACHE))
    if not (cache / source.replace("/", "___")).is_dir():
        raise ConnectionError(" ".join(str(reason).split()) or type(reason).__name__) from None
    if patterns:
        raise UserError(
            f"data_files of {source}: the Hub is not reached, and without it files cannot be told apart; connect, or "
            f"run `hf download {source} --repo-type dataset --local-dir FOLDER` where there is a network, and give "
            "that FOLDER"
        )
    with _offline():
        return dict(datasets.load_dataset(source, name=subset))


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look into its cache alone."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
