"""The images of a training that begins from given weights: those of the run that the weights are of, unless it is told
of others. Its split is taken with them, so that an image that was held out there is held out here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smalti.common.config import build, read_yaml
from smalti.common.data.run_images import recorded
from smalti.common.origin import Origin, laid_over
from smalti.tokenizer.base import TrainedTokenizer
from smalti.tokenizer.config import TrainConfig


class Told(NamedTuple):
    """The settings of a training, and a line on where those of its images come from, if there is something to say."""

    settings: TrainConfig
    line: str | None = None


def with_images(c: TrainConfig, given: Mapping[str, Any], run: Path, origin: Origin[TrainedTokenizer] | None) -> Told:
    """Return the settings of a training with the images of the run that it begins from.

    They are taken where no `images.source` is given, or the same one; what is given of `images` stands.

    Args:
        given: the settings of images that were given, without defaults.
        run: the folder of its stage, from which it goes on where there is no origin.
    """
    if c.start_from is None:
        return Told(c)
    stage = run if origin is None else origin.folder.parent
    there = (origin is None or origin.folder.name == "model") and (stage / "config.yaml").is_file()
    known = read_yaml(stage / "config.yaml").get("images") if there else None
    if not isinstance(known, dict):
        unsaid = origin is not None and "source" not in given
        return Told(c, f"images: {c.images.source}, as {c.start_from} does not say which it had" if unsaid else None)
    if not _same_source(given.get("source"), known.get("source"), stage):
        return Told(c)
    both = c.model_dump(mode="json") | {"images": laid_over(known, given)}
    found = build(TrainConfig, both, "start_from with the settings given")
    others = sorted(set(given) - {"source"})
    how = f"read as in {c.start_from} but for {', '.join(others)}" if others else f"split as in {c.start_from}"
    return Told(found, f"images: {found.images.source}, {how}" if origin is not None else None)


def _same_source(given: str | None, known: str | None, stage: Path) -> bool:
    """Return whether a source that is given, if one is, is that of a run: by its name, or the folder it lay in."""
    if given in (None, known):
        return True
    place = recorded(stage).place
    return place is not None and Path(str(given)).expanduser().resolve() == place.resolve()
