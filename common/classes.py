"""Names of classes: which are refused, and which have no training image, so that no model can have learnt them."""

import unicodedata
from collections.abc import Iterator, Sequence

NAMED = 8  # the others are counted
CONTROL = {"Cc", "Zl", "Zp"}  # Unicode's categories of controls, and of what ends a line or a paragraph


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError where a name cannot be typed in one line, or two are the same in Unicode's composed form."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if any(unicodedata.category(character) in CONTROL for character in name):
            raise ValueError(f"a class's name must be one line without control characters, got {name!r}; rename it")
        first = seen.setdefault(unicodedata.normalize("NFC", name), number)
        if first != number:
            raise ValueError(
                f"each class must have a name of its own, got {name!r} for class {first} and class {number}; rename one"
            )


def untrained(absent: Sequence[int], class_names: Sequence[str]) -> Iterator[str]:
    """Yield a line on the classes without a training image, if there are any."""
    if absent:
        names = ", ".join(class_names[number] for number in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        told = f"class {names} has" if len(absent) == 1 else f"{len(absent)} classes ({names}{more}) have"
        yield f"{told} no training image: what is drawn of it is untrained"
