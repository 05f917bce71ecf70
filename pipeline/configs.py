"""The shipped configs: list them, or copy one to change it.

    python pipeline/configs.py
    python pipeline/configs.py imagefolder --to configs/mine

Every command also finds a shipped config under its name, `configs/digits/prior.yaml`, in folders that have none of that
name.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from smalti.common.starting import answer_signals

    answer_signals()

from smalti.common import config
from smalti.common.command_line import answer_at_once, is_command


class Settings(config.Settings):
    """List the shipped configs, or copy one."""

    name: str | None = None
    """one of the shipped configs; without one they are listed"""
    to: str | None = None
    """the folder to copy it to, which must not exist yet"""


def read_settings(argv: Sequence[str]) -> Settings:
    return config.parse(Settings, __doc__, argv, positional="name", positional_help="one of the shipped configs")


if is_command(__name__):  # --help and a wrong setting are answered before torch is imported
    answer_at_once(read_settings)

from smalti.common import folder
from smalti.common.commands import as_typed
from smalti.common.config import SHIPPED
from smalti.common.errors import Refused, UserError
from smalti.common.launch import check_alone, run_command
from smalti.pipeline.run_arguments import names_its_images, run_of


def shipped() -> dict[str, str]:
    """Return the folders of shipped configs, and the purpose of each from its first sentence."""
    firsts = {
        path.parent: path for name in ("cluster.yaml", "tokenizer.yaml") for path in sorted(SHIPPED.glob(f"*/{name}"))
    }
    return {path.name: _first_sentence(first) for path, first in sorted(firsts.items())}


def first_of(folder_: Path) -> Path:
    """Return the config of stage one in a folder of shipped configs, or a copy of it."""
    return next(path for name in ("tokenizer.yaml", "cluster.yaml") if (path := folder_ / name).exists())


def _first_sentence(path: Path) -> str:
    comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in comment).partition(". ")[0].rstrip(".")


def copy(name: str, to: Path) -> None:
    """Copy a shipped config. Raises `UserError` where there is none of that name, or something stands at `to`."""
    if name not in shipped():
        raise UserError(f"there is no shipped config {name}; they are {', '.join(shipped())}")
    if os.path.lexists(to):
        raise Refused(f"{to} exists already; give another folder")
    folder.mend(to)
    with folder.replacing(to) as aside:
        shutil.copytree(SHIPPED / name, aside, ignore=shutil.ignore_patterns("__pycache__"))


def main(argv: Sequence[str]) -> None:
    check_alone()
    c = read_settings(argv)
    if c.to is not None and c.name is None:
        raise UserError(f"which config is to be copied to {c.to}? They are {', '.join(shipped())}")
    if c.name is not None and c.to is not None:
        copy(c.name, Path(c.to))
        print(
            f"{c.to} holds {', '.join(sorted(path.name for path in Path(c.to).iterdir()))}; change what they mark, then"
        )
        images = [] if names_its_images(first_of(Path(c.to))) else ["--images", "FOLDER"]
        print(f"next: {as_typed('pipeline/run.py', Path(c.to), *images, '--run', run_of(Path(c.to)))}")
        return
    found = shipped() if c.name is None else {c.name: shipped().get(c.name)}
    if None in found.values():
        raise UserError(f"there is no shipped config {c.name}; they are {', '.join(shipped())}")
    for name, purpose in found.items():
        print(f"{name:<{max(map(len, shipped()))}}  {purpose}".rstrip())
    print(f"next: {as_typed('pipeline/configs.py', c.name or 'imagefolder_small', '--to', 'configs/mine')}")


if __name__ == "__main__":
    run_command(main)
