"""Files that a command wrote beside users' own: `.written.json` has their names and SHA-256.

By it a file that is as it was written, and may be written again, is told from one that somebody put there or edited.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from smalti.common.folder import FORMAT, read_json, replacing, sha256, write_json

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
