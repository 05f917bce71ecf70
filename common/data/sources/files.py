"""The files that lie in a folder, by kind; nothing is opened that is not a regular file.

folder  ->  find_files  ->  Found(files, left)
"""

import os
import posixpath
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from smalti.common.data.sources.part import Left, one_line, printable_name
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.raster import looks_like_a_picture, read_file

IMAGE_SUFFIXES = {  # of the formats in common/raster.py; a test compares
    ".apng",
    ".avif",
    ".avifs",
    ".bmp",
    ".bw",
    ".dib",
    ".gif",
    ".icb",
    ".icns",
    ".ico",
    ".j2c",
    ".j2k",
    ".jfif",
    ".jp2",
    ".jpc",
    ".jpe",
    ".jpeg",
    ".jpf",
    ".jpg",
    ".jpx",
    ".mpo",
    ".pbm",
    ".pcx",
    ".pfm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".qoi",
    ".ras",
    ".rgb",
    ".rgba",
    ".sgi",
    ".tga",
    ".tif",
    ".tiff",
    ".vda",
    ".vst",
    ".webp",
    ".xbm",
}
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # suffix -> the builder of `datasets`
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDE_FILES = {  # lie beside a data set and say something of it: neither read as images nor counted
    ".ds_store",
    ".gitattributes",
    ".gitignore",
    ".huggingface.yaml",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "desktop.ini",
    "license",
    "license.md",
    "license.txt",
    "readme.md",
    "state.json",
    "thumbs.db",
}
SIDE_FOLDERS = {".cache", ".git"}  # left out likewise; any other folder may be a class, also one called license
OPENED = {".huggingface.yaml", "dataset_dict.json", "dataset_info.json", "readme.md", "state.json"}  # of the side files
HIDDEN = "hidden files or folders"
DRAWN = "folders of runs or of drawn pictures"
DRAWN_MARKS = ("tokenizer/images.json", ".request.json")  # in the folder of a run, and of what generate drew
SPECIAL = "pipes, devices, sockets or links that lead nowhere"
UNNAMEABLE = "files or folders whose names are not UTF-8"
SUFFIXES_NAMED = 8


class FolderFiles(NamedTuple):
    files: list[str]  # regular files, relative to the folder, "cat/0.png", in order
    left: Left  # what else lies there


def suffix(file: str) -> str:
    return posixpath.splitext(file)[1].lower()


def base_name(file: str) -> str:
    return file.rpartition("/")[2]


def is_metadata(file: str) -> bool:
    return base_name(file) in METADATA


def home_of(root: Path) -> tuple[Path, ...]:
    """Return the folders that may hold a source's files: its own, and in the Hub's cache the blobs of its snapshot."""
    snapshots = next((parent for parent in root.parents if parent.name == "snapshots"), None)
    return (root,) if snapshots is None else (root, snapshots.parent / "blobs")


def hold_inside(path: Path, homes: tuple[Path, ...], what: str) -> None:
    """Raise `UserError` where a path leads out of these folders."""
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise UserError(
            f"{what} leads out of the folder, to {path.resolve()}: a stranger's folder could so have your own files "
            "read; if it is yours, set images.reach: anywhere"
        )


def find_files(root: Path, reach: str = "folder") -> FolderFiles:
    """Return every file in a folder by its relative path; follow links that lead to regular files and folders.

    Raises:
        UserError: a link leads out of the folder (unless `reach` is anywhere), or to a folder that it stands in.
    """
    files: list[str] = []
    left: Left = {HIDDEN: [], SPECIAL: [], UNNAMEABLE: []}
    homes = home_of(root.resolve())
    waiting: list[tuple[str, tuple[Path, ...]]] = [("", (root.resolve(),))]
    while waiting:
        prefix, above = waiting.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name, kind, linked = prefix + entry.name, _left_out(entry), entry.is_symlink()
                if linked and reach == "folder" and (kind is None or entry.name.lower() in OPENED):
                    hold_inside(Path(entry), homes, f"the link {printable_name(entry.path)}")
                if kind is not None:
                    left.setdefault(kind, []).append(name)
                elif not entry.is_dir():
                    files.append(name)
                else:
                    inner = Path(entry).resolve() if linked else above[-1] / entry.name
                    if linked and inner in above:
                        raise UserError(
                            f"{entry.path} is a link to a folder that it stands in: it would be read without end; "
                            "remove it"
                        )
                    waiting.append((f"{name}/", (*above, inner)))
    left.pop("", None)
    return FolderFiles(sorted(files), {kind: sorted(names) for kind, names in left.items() if names})


def _left_out(entry: os.DirEntry) -> str | None:
    """Return the kind of an entry that is not read; "" for one that is not counted either."""
    name = entry.name.lower()
    if name in SIDE_FOLDERS or (name in SIDE_FILES and not entry.is_dir()):
        return ""
    if entry.name.startswith("."):
        return HIDDEN
    if entry.is_dir() and any((Path(entry) / mark).is_file() for mark in DRAWN_MARKS):
        return DRAWN
    if not (entry.is_dir() or entry.is_file()):
        return SPECIAL
    return None if printable_name(entry.name) == entry.name or "\\" in entry.name else UNNAMEABLE


def pictures_among(root: Path, files: list[str]) -> tuple[list[str], list[str]]:
    """Return the images and the other files; a file without a known suffix is recognised by its first bytes."""
    images: list[str] = []
    others: list[str] = []
    for file in files:
        (images if suffix(file) in IMAGE_SUFFIXES or looks_like_a_picture(root / file) else others).append(file)
    return images, others


def other_formats(files: list[str]) -> Left:
    """Return files that are no images, under a kind that counts their suffixes."""
    if not files:
        return {}
    counts = Counter(suffix(file) or "without a suffix" for file in files).most_common()
    said = ", ".join(f"{number} {name}" for name, number in counts[:SUFFIXES_NAMED])
    said += f" and {len(counts) - SUFFIXES_NAMED} other suffixes" if len(counts) > SUFFIXES_NAMED else ""
    return {f"files of other formats ({said})": files}


def read_source_text(path: Path, most: int, errors: str = "strict") -> str:
    """Return a small text file without its byte-order mark. Raises `UserError` if it is no text or longer."""
    try:
        return read_file(path, most).decode("utf-8-sig", errors)
    except (OSError, ValueError) as error:
        pass_on(error)
        raise UserError(f"{path} cannot be read as UTF-8 text: {one_line(error)}") from None
