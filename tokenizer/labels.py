"""The labels of images as the condition of a tokenizer that is told of their class."""

from typing import TYPE_CHECKING

from smalti.common.condition import Condition
from smalti.common.errors import UserError

if TYPE_CHECKING:  # torch takes seconds, and reading settings does without
    from smalti.common.data.images import ImageSet


def check_labels(condition: Condition, images: "ImageSet") -> None:
    """Raise `UserError` unless every image has a class, and the classes are those of a condition; nothing needs none.

    An embedding of no class would be trained by no image, and what is decoded with it would be noise.
    """
    if not condition.told:
        return
    if images.class_names is None:
        raise UserError(
            "model.condition class: these images have no classes; give a source with labels (a folder for each class, "
            "or a column of labels), or train with --model.condition.kind nothing"
        )
    if condition.class_names != images.class_names:
        raise UserError(
            f"the tokenizer is told of the classes {_shown(condition.class_names)}, and these images have "
            f"{_shown(images.class_names)}; give images of the same classes, or train another tokenizer on these"
        )
    for name, split in images.splits.items():
        if without := int((split.labels < 0).sum()):
            raise UserError(
                f"model.condition class: {without} of the {len(split)} images of split {name} have no class; label "
                "them, leave them out (a split through images.split), or train with --model.condition.kind nothing"
            )


def _shown(names: tuple[str, ...] | None, most: int = 8) -> str:
    """Return the first names and how many more there are."""
    names = names or ()
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most]) or 'none'}{more}"
