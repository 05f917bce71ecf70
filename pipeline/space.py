"""A Space of the Hub: a folder that serves the page of a pipeline, there or anywhere.

    README.md           its head tells the Hub what to start, and with which Python and Gradio
    app.py              starts the page
    requirements.txt    what Smalti needs, without Smalti
    model/NAME/         the pipeline
    smalti/             the code as it is here, since no package index has it, and its licence

`pip install -r requirements.txt`, then `python app.py`. Nothing is loaded from elsewhere.
"""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

import smalti
from smalti.common import markdown
from smalti.common.commands import ROOT
from smalti.common.errors import UserError
from smalti.common.hub import README
from smalti.common.record import code_version
from smalti.pipeline.image_pipeline import ImagePipeline

ROOMS = ("common", "metrics", "tokenizer", "prior", "pipeline")
EXTRA = "app"  # of the requirements
APP = '''"""The page to play with. On the Hub it is served under the Space's name, elsewhere to this machine alone."""

import os
from pathlib import Path

from smalti.common.launch import run_command
from smalti.pipeline.app import main

MODEL = Path(__file__).resolve().parent / "model" / {name!r}


def served() -> list[str]:
    """Return where the Hub wants the page, by the variables that it sets."""
    if "SPACE_HOST" not in os.environ:
        return []
    host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    return ["--host", host, "--port", port, "--names", os.environ["SPACE_HOST"]]


run_command(lambda given: main([str(MODEL), *served(), *given]))
'''


def lay_out_space(pipeline: ImagePipeline, name: str, path: Path, license: str | None) -> None:
    """Write the files of a Space into a folder.

    Args:
        name: the run's.
        license: for the head of the README, as the Hub names it.
    Raises:
        UserError: Smalti or Gradio is not installed, so that nobody knows what the Space needs.
    """
    needed, gradio = requirements(), gradio_version()
    pipeline.save_pretrained(path / "model" / name)
    copy_code(path / "smalti")
    (path / "requirements.txt").write_text("".join(f"{each}\n" for each in needed), encoding="utf-8")
    (path / "app.py").write_text(APP.format(name=name), encoding="utf-8")
    (path / README).write_text(readme(name, gradio, license), encoding="utf-8", errors="replace")


def requirements() -> list[str]:
    """Return the packages that Smalti and its page need, as `pip install -r` reads them."""
    try:
        needed = requires("smalti") or []
    except PackageNotFoundError:
        raise UserError(
            "a Space needs a list of packages, and Smalti is not installed here to have one: pip install -e '.[app]'"
        ) from None
    lines = (line.partition(";") for line in needed)
    return [line.strip() for line, _, when in lines if not when or when.strip() == f'extra == "{EXTRA}"']


def gradio_version() -> str:
    """Return the version of Gradio here, which the Space is to have too."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        raise UserError(
            "a Space has the Gradio that is installed here, and there is none: pip install gradio"
        ) from None


def copy_code(path: Path) -> None:
    """Copy the package and its licence into a folder, from a checkout or from where it is installed."""
    path.mkdir()
    licence = distribution("smalti").read_text("licenses/LICENSE") or (ROOT / "LICENSE").read_text(encoding="utf-8")
    (path / "LICENSE").write_text(licence, encoding="utf-8")
    shutil.copyfile(str(smalti.__file__), path / "__init__.py")
    for room in ROOMS:
        (found,) = {place.resolve() for base in smalti.__path__ if (place := Path(base) / room).is_dir()}
        for file in sorted(found.rglob("*.py")):
            target = path / room / file.relative_to(found)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def readme(name: str, gradio: str, license: str | None) -> str:
    """Return the README.md, whose head the Hub reads."""
    head = markdown.yaml_head(
        title=name,
        emoji="🧩",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=gradio,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        license=license,
        tags=[markdown.LIBRARY],
    )
    return (
        f"{head}# {markdown.plain(name)}\n\n"
        "A page to play with: draw images, see pictures as codes, complete them, paint with codes. It answers programs "
        "too, see *Use via API* at its foot.\n\n"
        "To start it elsewhere:\n\n"
        f"{markdown.fenced('pip install -r requirements.txt' + chr(10) + 'python app.py', 'bash')}\n"
        f"`model/` holds the pipeline, `smalti/` the code, of {markdown.plain(code_version())}.\n"
    )
