"""Images of a source, opened by its settings as a set of splits.

    source  ->  ImageSplit.read  ->  ImageBatch  ->  augment | view  ->  to_float

A set whose decoded pixels fit in `memory` is decoded once; a larger one is read from disk batch by batch.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator

from smalti.common.classes import untrained
from smalti.common.data import validation
from smalti.common.data.config import ImagesConfig
from smalti.common.data.fingerprint import images_fingerprint, uniform
from smalti.common.data.pixels import WHITE, Shape
from smalti.common.data.sources import VALIDATION_NAMES, Unread, open_source
from smalti.common.data.split import ImageSplit, look_for_duplicates
from smalti.common.errors import UserError
from smalti.common.folder import FORMAT
from smalti.common.shown import shown

KIND = "smalti.images"
GLANCED = 16  # images of a split on disk whose range is looked at
FEW = 10  # images held out, of which figures say little
NAMED = 8  # rows of one kind that are named; the others are counted


class ImageSet(NamedTuple):
    splits: dict[str, ImageSplit]  # train, validation, and whatever else the source has
    class_names: tuple[str, ...] | None
    fingerprint: str  # of the images and labels themselves: the same wherever they are copied
    unread: tuple[Unread, ...] = ()  # what lies in the source and is not read
    place: Path | None = None  # the source's folder, absolute
    notes: tuple[str, ...] = ()  # how the source was understood, where it could have been understood otherwise

    def record(self, source: str) -> dict[str, Any]:
        """Return what `images.json` says: which images these are, and of each split how many.

        Args:
            source: as the settings name it.
        """
        return {
            "kind": KIND,
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "source": source,
            "place": None if self.place is None else str(self.place),
            "splits": self.counts(),
            "unread": [each._asdict() for each in self.unread],
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each split how many images it has, and how many were left out, repeated or animated."""
        return {
            name: {
                "images": len(split),
                "left_out": len(split.corrupt),
                "repeated": len(split.repeated),
                "animated": len(split.animated),
            }
            for name, split in self.splits.items()
        }

    def remarks(self) -> Iterator[str]:
        """Yield remarks on the source and its rows, for the user: of each kind the first rows, and their number."""
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
        yield from untrained(self.absent_classes(), self.class_names or ())
        yield from self._of_validation()

    def _of_validation(self) -> Iterator[str]:
        """Yield a warning of classes that are trained and of which no image is held out for validation, or of few
        images there."""
        names, (train, held_out) = self.class_names or (), (self.splits[name] for name in ("train", "validation"))
        unseen = [names[number] for number in np.setdiff1d(train.labels, held_out.labels) if 0 <= number < len(names)]
        if unseen:
            yield (
                f"validation has {len(held_out)} images, and none of {len(unseen)} of the {len(names)} classes, such "
                f"as {unseen[0]}: its figures say nothing of those; more images help, or a larger "
                "--images.validation_share"
            )
        elif len(held_out) < FEW:
            yield (
                f"validation has {len(held_out)} of {len(train) + len(held_out)} images: its figures say little, and "
                "a prior's best weights are chosen by them; more images help, or a larger --images.validation_share"
            )

    def absent_classes(self) -> tuple[int, ...]:
        """Return the classes that no training image has."""
        return tuple(np.setdiff1d(np.arange(len(self.class_names or ())), self.splits["train"].labels).tolist())


def _of_range(split: ImageSplit) -> str | None:
    """Return a warning of pictures of 16 bits a channel that use so few of them that they come out nearly black."""
    dim = [value for _, value in split.brightest if value <= WHITE // 4]
    if not dim or split.shape.white < WHITE:
        return None
    values, deep = 2 ** max(8, max(dim).bit_length()), len(split.brightest)
    looked = "" if split.in_memory else " that were looked at"
    return (
        f"{len(dim)} of {deep} pictures of 16 bits{looked} use at most {values:,} of 65,536 values and come out dark; "
        f"if that is their whole range, give --images.white {values - 1}"
    )


# --------------------------------------------------------------------------------------------------- the set as a whole


def _with_validation(splits: dict[str, ImageSplit], share: float) -> dict[str, ImageSplit]:
    """Return the splits, train and validation first; a source without validation has some rows of train held out."""
    train, others = splits["train"], {name: split for name, split in splits.items() if name != "train"}
    given = next((name for name in VALIDATION_NAMES if name in others), None)
    if given is not None:
        return {"train": train, "validation": others.pop(given).named("validation"), **others}
    if len(train) == 1:
        raise UserError(f"{train.title} has 1 image; at least 2 are needed, one to train on and one to validate with")
    out = uniform(train.all_digests()) < share  # of rows that are left out too: where they are counted
    out[train.rows] = validation.held_out_rows(train.digests(), train.labels, share)
    return {"train": train.of_rows("train", ~out), "validation": train.of_rows("validation", out), **others}


def open_images(config: ImagesConfig, size: tuple[int, int], channels: int) -> ImageSet:
    """Return the source's images, to be read as (channels, *size); decode them now if they fit in memory.

    Raises:
        UserError: there is no such source or column, a split is empty, class names disagree between splits, or
            (when decoded now, `corrupt: refuse`) an image is damaged.
    """
    if channels not in (1, 3, 4):
        raise UserError(f"images have 1 channel (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    source = open_source(config)
    if config.shift >= min(size):
        raise UserError(
            f"images.shift {config.shift} moves images of {size[0]}x{size[1]} out of sight; it must be smaller"
        )
    shape = Shape(channels, *size, config.resize, config.binarize, config.white)
    parts = {name: ImageSplit(name, part, shape, config) for name, part in source.parts.items()}
    in_memory = sum(map(len, parts.values())) * math.prod(shape[:3]) <= config.memory * 2**30
    for split in parts.values():
        if in_memory:
            split.keep_in_memory()
        else:
            split.glance(GLANCED)
    seen = images_fingerprint(
        {name: split.all_digests() for name, split in parts.items()}, source.parts, source.class_names
    )
    splits = _with_validation(parts, config.validation_share)
    look_for_duplicates(splits, config.duplicates)
    return ImageSet(splits, source.class_names, seen, source.unread, source.place, source.notes)


def tell_of_images(images: ImageSet, accelerator: Accelerator) -> None:
    """Print how many images there are, what of them was left out, and what else a user should know."""
    sizes = " + ".join(f"{len(split)} {name}" for name, split in images.splits.items())
    classes = f"{len(images.class_names)} classes" if images.class_names else "no classes"
    accelerator.print(f"images: {sizes}, {classes}")
    for remark in images.remarks():
        accelerator.print(shown(remark), file=sys.stderr)


def held_out_split(splits: Mapping[str, ImageSplit], name: str | None = None) -> ImageSplit:
    """Return the named split, else test, else validation. Raises `UserError` if there is none of that name."""
    name = name or ("test" if "test" in splits else "validation")
    if name not in splits:
        raise UserError(f"there is no split {name!r}; the images have {', '.join(splits)}")
    return splits[name]
