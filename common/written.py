"""What a command wrote into a folder where users also put and change files: `.written.json`, names with their SHA-256.

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
    """Return the digests that each file written into a folder had, the last two; nothing where nobody noted any."""
    path = folder / NAME
    files = read_json(path).get("files") if path.is_file() else {}
    if not isinstance(files, dict):
        return {}
    return {name: digests for name, digests in files.items() if isinstance(digests, list)}


def note(folder: Path, digests: Mapping[str, str]) -> None:
    """Keep the digests of files about to be written. Those before stay beside them: a kill may come before the files
    do."""
    files = noted(folder)
    for name, digest in digests.items():
        files[name] = [*(each for each in files.get(name, []) if each != digest), digest][-2:]
    write_json(folder / NAME, {"kind": KIND, "format": FORMAT, "files": dict(sorted(files.items()))})


def is_as_written(folder: Path, name: str, files: Mapping[str, list[str]]) -> bool:
    """Return whether nobody put the file there or changed it since a command of ours wrote it: it is so, or is not
    there."""
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return True
    return name in files and path.is_file() and not path.is_symlink() and sha256(path) in files[name]


def write_text(path: Path, text: str) -> None:
    """Write a text that users edit. One that stands there otherwise than it was written is kept, and that is said."""
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
