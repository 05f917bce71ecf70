"""Classes: their names in order, and the number of each label.

Names are compared in Unicode's composed form (NFC), in which a name typed and a name read from a disk are one. Names
that are all whole numbers stand in the order of their values: 0, 1, 2, ..., 10, not 0, 1, 10, 2.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from smalti.common.errors import UserError

MOST_CLASSES = 2**20  # a larger number in a column is an id, not a class


def normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def all_numerals(names: Iterable[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def ordered_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in order; whole numbers by value."""
    distinct = {normal(name) for name in names}
    return tuple(sorted(distinct, key=(lambda name: (int(name), len(name))) if all_numerals(distinct) else None))


def class_names(labels: Iterable[Any], title: str) -> tuple[str, ...] | None:
    """Return the distinct texts in order; or, for whole numbers, 0 to the highest; none for no labels at all."""
    distinct = set(labels) - {None}
    kinds = {type(label) for label in distinct}
    if not kinds:
        return None
    if kinds == {str}:
        return ordered_names(distinct)
    if kinds not in ({int}, {bool}):
        got = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"{title}: expected class numbers from 0, or text; got {got}")
    if max(distinct) >= MOST_CLASSES:
        raise UserError(f"{title}: expected class numbers from 0, below {MOST_CLASSES:,}; got {max(distinct)}")
    return tuple(map(str, range(max(distinct) + 1))) or None


def refuse_other_names(title: str, names: Sequence[str], expected: Sequence[str]) -> None:
    """Raise `UserError` where two splits number their classes differently."""
    for name, wanted in zip_longest(names, expected):
        if name != wanted:
            raise UserError(f"{title}: expected the class names of the split train; got {name} in place of {wanted}")


def numbered(labels: Iterable[Any], names: Sequence[str], title: str) -> np.ndarray:
    """Return the index of each label among the names, (N,) int64; -1 for none or for a number below 0."""
    labels = [normal(label) if isinstance(label, str) else label for label in labels]
    number = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    foreign = {label for label in labels if label not in number and (isinstance(label, str) or (label or 0) > 0)}
    if foreign:
        got = ", ".join(sorted(map(str, foreign))[:3])
        raise UserError(f"{title}: expected the classes of the split train; got {got}, which it has not")
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64)
