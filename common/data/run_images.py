"""The images of a run: which they were, where they lay, and whether they are still the same.

    RUN/tokenizer/config.yaml    how they are read, the source as the user named it
    RUN/tokenizer/images.json    their fingerprint, and the folder of the source, absolute

A run is found again from any working directory: a folder is read where it lay, and the Hub is not asked for a folder's
name. All code that reads a run's images does so here, where images other than those of the training are refused. Runs
of earlier versions do not say which images they had; a line warns of it.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from smalti.common import codes
from smalti.common.config import build, read_yaml
from smalti.common.data.config import DataFiles, ImagesConfig, Pictured, SplitNames
from smalti.common.data.images import KIND, ImageSet, open_images
from smalti.common.errors import UserError
from smalti.common.folder import check_format, read_json, write_json
from smalti.common.progress import on_main

ANOTHER = "or give their folder as --source, to take them as another data set"


class Recorded(NamedTuple):
    """The images a run was trained with, as its images.json says."""

    fingerprint: str | None  # none where an earlier version trained it
    source: str | None  # as the settings named it
    place: Path | None  # the folder, absolute; none for the digits and the Hub


def recorded(run: Path) -> Recorded:
    """Return what RUN/tokenizer/images.json says, `run` being RUN/tokenizer. Raises `UserError` for a damaged one."""
    path = run / "images.json"
    written = read_json(path) if path.exists() else {}
    if "kind" not in written:  # earlier versions counted the images and no more
        return Recorded(None, None, None)
    check_format(written, KIND, path)
    texts = [written.get(key) for key in ("fingerprint", "source", "place")]
    if not isinstance(texts[0], str) or not all(text is None or isinstance(text, str) for text in texts):
        raise UserError(f"{path}: fingerprint, source and place must be texts, got {texts}; train again to mend it")
    fingerprint, source, place = texts
    return Recorded(fingerprint, source, None if place is None else Path(place))


def write_record(images: ImageSet, source: str, run: Path, accelerator: Accelerator) -> None:
    """Write images.json, which makes these images of the source so named the run's."""
    if accelerator.is_main_process:
        write_json(run / "images.json", images.record(source))


def run_images(run: Path, source: str | None = None) -> ImagesConfig:
    """Return the settings by which the tokenizer of RUN/tokenizer reads its images, or would read another `source`."""
    path = run / "config.yaml"
    images = build(ImagesConfig, read_yaml(path).get("images", {}), str(path))
    if source is None:
        return images
    return images.model_copy(
        update={"source": source, "subset": None, "split": SplitNames(), "data_files": DataFiles()}
    )


def where_they_lay(config: ImagesConfig, run: Path) -> ImagesConfig:
    """Return the settings with the folder that the run read as an absolute path, whatever the working directory.

    Raises:
        UserError: it read a folder, which is not there; or the run's folder is that of the images.
    """
    source = Path(config.source).expanduser()
    if source.is_dir() and source.resolve() == run.parent.resolve():
        raise UserError(f"{source} is the folder of the images, and the run would write among them; give another --run")
    before, begun = recorded(run), (run / "state").exists() or (run / "model").exists()
    if not begun or before.place is None or before.source != config.source:
        return config
    if before.place.is_dir():
        return config.model_copy(update={"source": str(before.place)})
    if Path(config.source).expanduser().is_dir():  # moved with the run: the fingerprint says whether these are they
        return config
    raise UserError(
        f"the images of {run.parent} lay in the folder {before.place}, which is not there: bring it back, or start "
        f"where {config.source} is a folder that holds them"
    )


def open_run_images(
    run: Path,
    tokenizer: Pictured,
    source: str | None = None,
    *,
    otherwise: str = "or train another --run on these",
) -> ImageSet:
    """Return the images that the tokenizer of RUN/tokenizer was trained with, or another `source` read the same way.

    Args:
        otherwise: what the command can do with other images, for the message.
    Raises:
        UserError: without `source`, they are not those of the training; what `open_images` raises.
    """
    if source is not None:
        return open_images(run_images(run, source), tokenizer.image_size, tokenizer.image_channels)
    images, before = _own_images(run, tokenizer, {}), recorded(run).fingerprint
    where = images.place or run_images(run).source
    if before is None and on_main():
        print(
            f"{run.parent} does not say which images it was trained with: those of {where} are taken, and their "
            "validation split may hold some that were trained on",
            file=sys.stderr,
        )
    if before not in (None, images.fingerprint):
        raise UserError(f"{_others(run, where, images)}: bring those back, {otherwise}")
    return images


def _own_images(run: Path, tokenizer: Pictured, changes: Mapping[str, Any]) -> ImageSet:
    """Return the images that a run's settings name; they may have changed since."""
    config = where_they_lay(run_images(run), run).model_copy(update=changes)
    return open_images(config, tokenizer.image_size, tokenizer.image_channels)


def _others(run: Path, where: Path | str, images: ImageSet) -> str:
    """Return the words that say that images are not those of the training."""
    before = recorded(run).fingerprint or "unknown"
    return (
        f"the images of {where} are not those that {run.parent} was trained with (fingerprint {before[:12]} then, "
        f"{images.fingerprint[:12]} now)"
    )


def open_vouched_images(run: Path, tokenizer: Pictured, **changes: Any) -> ImageSet:
    """Return the images of a run for pictures that may leave this machine.

    The settings of somebody else's run may name a folder of this machine; that its pictures are the run's is believed
    only if images.json or the codes say their fingerprint.

    Args:
        changes: of the settings by which they are read, `memory`.
    Raises:
        UserError: they are not those of the training, or nothing says which those were; what `open_images` raises.
    """
    known, named = {recorded(run).fingerprint}, run_images(run).source
    if codes.is_whole(run.parent / "codes"):
        known.add(codes.read_info(run.parent / "codes")[0].source.get("fingerprint"))
    if known == {None} and named != "digits":
        raise UserError(
            f"{run.parent} does not say which images it was trained with: pictures of {named} are not taken for them"
        )
    images = _own_images(run, tokenizer, changes)
    if named != "digits" and images.fingerprint not in known:
        raise UserError(f"{_others(run, named, images)}: none of them is shown")
    return images
