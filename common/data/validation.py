"""The images held out for validation where a source has no such split, chosen by each image alone.

An image is held out if a number in [0, 1) that its file's digest gives is below the share. Files that are added,
removed, renamed or moved leave all others on their side, and copies of one file stand on one side.

Two exceptions keep either side of use. Of a class whose images would all be held out, one is kept to train on. And
there is always at least one image to train on, and one to validate with. An image moves with all of its copies; where
the whole set is copies of one file, they are parted as if they were different.

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
    files = digests if (digests != digests[0]).any() else np.arange(len(digests))  # rows of one number move together
    if out.all():
        out[files == files[drawn.argmax()]] = False
    for label in np.setdiff1d(labels[out], np.append(labels[~out], -1)):
        if out[labels == label].all():  # else a copy went with another class's image
            out[files == files[_last(drawn, labels == label)]] = False
    if not out.any():
        out[files == files[_first(drawn, _spare(files, labels))]] = True
    return out


def _last(drawn: np.ndarray, among: np.ndarray) -> int:
    """Return the row that would be held out last."""
    return int(np.where(among, drawn, -1).argmax())


def _first(drawn: np.ndarray, among: np.ndarray) -> int:
    """Return the row that is held out first."""
    return int(np.where(among, drawn, 2).argmin())


def _spare(files: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which rows' files can be held out and leave every class another file, (N,) bool; all rows where none can.

    Args:
        files: (N,) equal for copies.
    """
    pairs = np.unique(np.stack([labels, np.unique(files, return_inverse=True)[1]]), axis=1)
    classes, counts = np.unique(pairs[0], return_counts=True)
    alone = np.isin(labels, classes[(counts == 1) & (classes >= 0)])
    spare = ~np.isin(files, files[alone])
    return spare if spare.any() else np.ones_like(spare)
