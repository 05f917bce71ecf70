"""Images from wherever they lie: a set of splits, opened by its settings.

    source  ->  ImageSplit.read  ->  ImageBatch  ->  augment | view  ->  to_float

A set whose decoded pixels fit in `memory` is decoded once; a larger one is read from disk batch by batch.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.config import build, read_yaml
from common.errors import UserError
from common.folder import FORMAT
from tokenizer.config import DataFiles, ImagesConfig, ImageTokenizerConfig, SplitNames
from tokenizer.pixels import WHITE, Shape
from tokenizer.sources import VALIDATION_NAMES, Part, Unread, fingerprint, open_source
from tokenizer.split import ImageSplit, look_for_duplicates
from tokenizer.views import mixed

GLANCED = 16  # images of a split on disk whose range is looked at
NAMED = 8  # rows of one kind that are named; the others are counted


class ImageSet(NamedTuple):
    splits: dict[str, ImageSplit]  # train, validation, and whatever else the source has
    class_names: tuple[str, ...] | None
    fingerprint: str  # of the images and labels themselves: the same wherever they are copied
    unread: tuple[Unread, ...] = ()  # what lies in the source and is not read
    place: Path | None = None  # the source's folder, absolute
    notes: tuple[str, ...] = ()  # how the source was understood, where it could have been understood otherwise

    def record(self) -> dict[str, Any]:
        """Return what `images.json` says: which images these are, and of each split how many."""
        return {
            "kind": "tesserae.images", "format": FORMAT, "fingerprint": self.fingerprint,
            "place": None if self.place is None else str(self.place),
            "splits": self.counts(), "unread": [each._asdict() for each in self.unread],
        }  # fmt: skip

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each split its images; how many were left out, for whatever reason; and how many were repeated, or animated."""
        return {
            name: {
                "images": len(split), "left_out": len(split.corrupt), "repeated": len(split.repeated),
                "animated": len(split.animated),
            }
            for name, split in self.splits.items()
        }  # fmt: skip

    def remarks(self) -> Iterator[str]:
        """What a user should know of the source and of the rows: each kind's first ones by name, and how many there are."""
        yield from self.notes
        for kind, number, examples in self.unread:
            yield f"not read: {number} {kind}, such as {', '.join(examples)}"
        for name, split in self.splits.items():
            left_out = {row.row for row in split.corrupt}
            kinds = {
                "left out": split.corrupt,
                "animated, the first frame taken": [row for row in split.animated if row.row not in left_out],
                "repeated and kept": [row for row in split.repeated if row.row not in left_out],
            }
            if told := _of_range(split):
                yield f"{name}: {told}"
            for kind, rows in kinds.items():
                for row in rows[:NAMED]:
                    yield f"{name}, {kind}: {row}"
                if rows:
                    yield f"{name}: {len(rows)} {kind}, {len(split)} images remain"


def _of_range(split: ImageSplit) -> str | None:
    """Return a word on pictures of 16 bits a channel that use so few of them that they come out nearly black."""
    dim = [value for value in split.brightest if value <= WHITE // 4]
    if not dim or split.shape.white < WHITE:
        return None
    values, deep = 2 ** max(8, max(dim).bit_length()), len(split.brightest)
    looked = "" if split.in_memory else " that were looked at"
    return (
        f"{len(dim)} of {deep} pictures of 16 bits{looked} use at most {values:,} of 65,536 values and come out dark; "
        f"if that is their whole range, give --images.white {values - 1}"
    )


# --------------------------------------------------------------------------------------------------- the set as a whole


def _with_validation(parts: dict[str, Part], share: float) -> dict[str, tuple[Part, np.ndarray]]:
    """Each split's part and rows (len,), ascending; without a split for validation some rows of train are held out.

    Which ones is a hash of their index: numpy may change its permutations, and a resumed run must not see the others.
    """
    rows = {name: (part, np.arange(len(part.labels))) for name, part in parts.items()}
    train, everything = rows.pop("train")
    given = next((name for name in VALIDATION_NAMES if name in rows), None)
    if given is not None:
        return {"train": (train, everything), "validation": rows.pop(given), **rows}
    if len(everything) == 1:
        raise UserError(f"{train.title} has 1 image; at least 2 are needed, one to train on and one to validate with")
    shuffled = np.argsort(mixed(everything.astype(np.uint64)), kind="stable")
    count = min(max(1, round(share * len(everything))), len(everything) - 1)
    held_out, kept = np.sort(shuffled[:count]), np.sort(shuffled[count:])
    return {"train": (train, kept), "validation": (train, held_out), **rows}


def open_images(config: ImagesConfig, size: tuple[int, int], channels: int) -> ImageSet:
    """The source's images, to be read as (channels, *size); decoded now where memory allows.

    Raises:
        UserError: there is no such source or column, a split is empty, class names disagree between splits, or
            (when decoded now, `corrupt: refuse`) an image is damaged.
    """
    if channels not in (1, 3, 4):
        raise UserError(f"images have 1 channel (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    source = open_source(config)
    if config.shift >= min(size):
        raise UserError(f"images.shift {config.shift} moves images of {size[0]}x{size[1]} out of sight; it must be smaller")
    shape = Shape(channels, *size, config.resize, config.black_and_white, config.white)
    splits = {
        name: ImageSplit(name, part, rows, shape, config)
        for name, (part, rows) in _with_validation(source.parts, config.validation_share).items()
    }
    if sum(map(len, splits.values())) * math.prod(shape[:3]) <= config.memory * 2**30:
        for split in splits.values():
            split.keep_in_memory()
    for split in splits.values():
        if not split.in_memory:
            split.glance(GLANCED)
    if config.duplicates != "keep" or all(split.in_memory for split in splits.values()):  # else it costs a pass over the disk
        look_for_duplicates(splits, config.duplicates)
    seen = fingerprint(source.parts, source.class_names)
    return ImageSet(splits, source.class_names, seen, source.unread, source.place, source.notes)


def run_images(run: Path, source: str | None = None) -> ImagesConfig:
    """How the tokenizer of RUN/tokenizer reads its images, or would read another `source`."""
    path = run / "config.yaml"
    images = build(ImagesConfig, read_yaml(path).get("images", {}), str(path))
    if source is None:
        return images
    return images.model_copy(update={"source": source, "subset": None, "split": SplitNames(), "data_files": DataFiles()})


def open_run_images(run: Path, tokenizer: ImageTokenizerConfig, source: str | None = None) -> ImageSet:
    """The images that the tokenizer of RUN/tokenizer was trained with, or of another `source`, read as it read them."""
    return open_images(run_images(run, source), tokenizer.image_size, tokenizer.image_channels)


def held_out(splits: Mapping[str, ImageSplit], name: str | None = None) -> ImageSplit:
    """The split that figures are of: the named one, or else test, or else validation. Raises `UserError` if there is none."""
    name = name or ("test" if "test" in splits else "validation")
    if name not in splits:
        raise UserError(f"there is no split {name!r}; the images have {', '.join(splits)}")
    return splits[name]
