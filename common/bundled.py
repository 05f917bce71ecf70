"""The trained pipelines that come with the package, by name: `smalti/digits` is the folder `pretrained/digits`.

A folder of that name in the current directory wins, as before the Hub. No name here is ever looked up on the Hub, where
an account of the name `smalti` may be anybody's.
"""

import re
from pathlib import Path

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
OWNER = "smalti"


def bundled(name: str | Path) -> Path | None:
    """Return the folder of a pipeline that comes with the package, `smalti/NAME`; None for every other name."""
    found = re.fullmatch(rf"{OWNER}/([\w-]+)", str(name))
    folder = PRETRAINED / found[1] if found else None
    return folder if folder is not None and (folder / "model_index.json").is_file() else None


def names() -> list[str]:
    """Return the names of all that come with the package."""
    return sorted(f"{OWNER}/{path.parent.name}" for path in PRETRAINED.glob("*/model_index.json"))


def bundled_name(run: str) -> str | None:
    """Return `smalti/NAME` where a run's name means a bundled pipeline, None for every other.

    A command takes `digits` for `smalti/digits`, but what lies at that path wins.
    """
    if Path(run).exists():
        return None
    return next((name for name in (run, f"{OWNER}/{run}") if bundled(name) is not None), None)


def run_named(run: str) -> Path:
    """Return the folder of a run by its path, or where nothing lies there, of the bundled pipeline of that name."""
    name = bundled_name(run)
    return (bundled(name) if name is not None else None) or Path(run)
