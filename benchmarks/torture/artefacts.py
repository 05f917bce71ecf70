"""The files that commands leave in a folder: equal to an undisturbed run's, and whole at every moment."""

import json
import re
from pathlib import Path

import PIL.Image
import pyarrow.parquet as pq
from safetensors import safe_open

RECORD = ("date", "command", "commit", "machine", "versions", "train_seconds")  # when, by what and how fast; not what
DAY = re.compile(rb"\d{4}-\d\d-\d\d")  # in cards and reports


def artefacts(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder that users see or commands read, by its path, without logs and locks."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        ours = path.suffix not in (".log", ".lock") and path.name != ".seconds.json" and "/.parts/" not in f"/{name}"
        if path.is_file() and ours:
            found[name] = path.read_bytes()
            if path.name == "summary.json":
                figures = json.loads(found[name])
                kept = {key: value for key, value in figures.items() if not key.endswith("_seconds")}
                found[name] = json.dumps(kept, sort_keys=True).encode()
            if path.name in ("README.md", "report.html"):
                found[name] = DAY.sub(b"", found[name])
            if path.name == ".written.json":
                files = json.loads(found[name])["files"]
                found[name] = json.dumps({each: files[each] for each in files if each != "README.md"}).encode()
            if path.suffix == ".json" and ("evaluation/" in name or "classifier-" in name):
                kept = {key: value for key, value in json.loads(found[name]).items() if key not in RECORD}
                found[name] = json.dumps(kept, sort_keys=True).encode()
    return found


def difference(reference: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Return names of files that are missing, new or other than in the reference."""
    return sorted(name for name in reference.keys() | found.keys() if reference.get(name) != found.get(name))


def half_written(folder: Path) -> list[str]:
    """Return visible files that cannot be read to their end. (Files being written have names that begin with a dot.)"""
    bad = []
    for path in folder.rglob("*"):
        hidden = any(
            part.startswith(".") and part not in (".parts", ".cache") for part in path.relative_to(folder).parts
        )
        if hidden or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - no mapping
                        file.get_tensor(name)
            elif path.suffix == ".png":
                PIL.Image.open(path).load()
        except Exception as error:
            bad.append(f"{path.relative_to(folder)}: {error}")
    return bad
