"""Files that a command wrote beside users' own: `.written.json` has their names and SHA-256.

By it a file that is as it was written, and may be written again, is told from one that somebody put there or edited.
"""

import hashlib
import itertools
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from smalti.common.folder import FORMAT, link, read_json, replacing, rewriting, sha256, write_json

NAME = ".written.json"
KIND = "smalti.written"


def noted(folder: Path) -> dict[str, list[str]]:
    """Return the last two digests of each file that was written into a folder; empty where none were noted."""
    path = folder / NAME
    files = read_json(path).get("files") if path.is_file() else {}
    if not isinstance(files, dict):
        return {}
    return {name: digests for name, digests in files.items() if isinstance(digests, list)}


def note(folder: Path, digests: Mapping[str, str]) -> None:
    """Add the digests of files about to be written. Earlier ones stay: a kill may come before the files are there."""
    files = noted(folder)
    for name, digest in digests.items():
        files[name] = [*(each for each in files.get(name, []) if each != digest), digest][-2:]
    write_json(folder / NAME, {"kind": KIND, "format": FORMAT, "files": dict(sorted(files.items()))})


def is_as_written(folder: Path, name: str, files: Mapping[str, list[str]]) -> bool:
    """Return whether a file is missing or still as a command of ours wrote it."""
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return True
    return name in files and path.is_file() and not path.is_symlink() and sha256(path) in files[name]


def write_text(path: Path, text: str) -> None:
    """Write a text that users may edit; keep an edited one, and print that it was kept."""
    data = text.encode("utf-8", errors="replace")
    digest = hashlib.sha256(data).hexdigest()
    files = noted(path.parent)
    if not is_as_written(path.parent, path.name, {**files, path.name: [*files.get(path.name, []), digest]}):
        tell_kept(path)
        return
    note(path.parent, {path.name: digest})
    with replacing(path) as aside:
        aside.write_bytes(data)


def tell_kept(path: Path) -> None:
    print(
        f"{path} is not as this command wrote it, and is kept; remove it, and the same command writes it",
        file=sys.stderr,
    )


@contextmanager
def replacing_ours(path: Path) -> Iterator[Path]:
    """Replace a file as `folder.replacing` does; keep one that this command did not write as NAME.found."""
    with replacing(path) as aside:
        yield aside
        if not is_as_written(path.parent, path.name, noted(path.parent)):
            keep_found(path)
        note(path.parent, {path.name: sha256(aside)})


@contextmanager
def rewriting_ours(path: Path, ours: Collection[str]) -> Iterator[Path]:
    """Replace a folder as `folder.rewriting` does; keep what was changed of `ours`, names in it, as NAME.found."""
    files = noted(path)
    changed = [name for name in dict.fromkeys(ours) if files and not is_as_written(path, name, files)]
    with rewriting(path, [*ours, NAME]) as aside:
        yield aside
        for name in changed:
            kept = _free_name(path / name).relative_to(path)
            (aside / kept).parent.mkdir(parents=True, exist_ok=True)
            link(path / name, aside / kept)
            _tell_found(path / name, kept.name)
        note(aside, {name: sha256(aside / name) for name in ours if (aside / name).is_file()})


def keep_found(path: Path) -> None:
    """Rename a file that is damaged or somebody's own, so that another can take its name, and print that."""
    kept = _free_name(path)
    os.rename(path, kept)
    _tell_found(path, kept.name)


def _free_name(path: Path) -> Path:
    names = itertools.chain([f"{path.name}.found"], (f"{path.name}.found-{n}" for n in itertools.count(2)))
    return next(each for each in map(path.with_name, names) if not os.path.lexists(each))


def _tell_found(path: Path, kept: str) -> None:
    print(f"{path} is not as this command wrote it: it is kept as {kept}, and written anew", file=sys.stderr)
