"""The arguments of `pipeline/run.py` in a hint: a folder of configs, and images where it names none."""

from pathlib import Path

from smalti.common import config
from smalti.common.config import SHIPPED


def names_its_images(first: Path) -> bool:
    """Return whether the config of a first stage says where its images are: digits, a name on the Hub, or a folder."""
    images = config.read_yaml(first).get("images")
    source = str(images.get("source", "digits") if isinstance(images, dict) else "digits")
    named = source[:1] not in "/.~" and source.count("/") <= 1  # digits, or owner/name
    return named or Path(source).expanduser().exists()


def run_of(folder: Path) -> Path:
    """Return the folder of a run with the configs of a folder."""
    return Path("runs") / folder.absolute().name


def run_arguments(first: Path) -> list[str | Path]:
    """Return the arguments for the folder of a first stage's config, with a placeholder for images it does not name."""
    folder = first.parent
    shown = folder.relative_to(SHIPPED.parent) if folder.is_relative_to(SHIPPED) else folder
    return [shown] if names_its_images(first) else [shown, "--images", "FOLDER", "--run", run_of(folder)]
