"""The images held out for validation where a source has no such split, chosen by each image alone.

An image is held out if a number in [0, 1) that its file's digest gives is below the share. Files that are added,
removed, renamed or moved leave all others on their side, and copies of one file stand on one side.

Two exceptions keep either side of use. Of a class whose images would all be held out, one is kept to train on. And
there is always at least one image to train on, and one to validate with.

Shapes: N rows of the training split.
"""

import numpy as np

from smalti.common.data.fingerprint import uniform


def held_out_rows(digests: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Return which rows are held out, (N,) bool: at least one and not all; N is at least 2.

    Args:
        digests: (N,) of each row's file.
        labels: (N,) of each row's class, -1 where it has none.
    """
    drawn = uniform(digests)
    out = drawn < share
    if out.all():
        out[drawn.argmax()] = False
    for label in np.setdiff1d(labels[out], np.append(labels[~out], -1)):
        out[_last(drawn, labels == label)] = False
    if not out.any():
        out[_first(drawn, _spare(labels))] = True
    return out


def _last(drawn: np.ndarray, among: np.ndarray) -> int:
    """Return the row that would be held out last."""
    return int(np.where(among, drawn, -1).argmax())


def _first(drawn: np.ndarray, among: np.ndarray) -> int:
    """Return the row that is held out first."""
    return int(np.where(among, drawn, 2).argmin())


def _spare(labels: np.ndarray) -> np.ndarray:
    """Return which rows have another of their class beside them, (N,) bool; all rows where none has."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    spare = (counts[inverse] > 1) | (labels < 0)
    return spare if spare.any() else np.ones_like(spare)
