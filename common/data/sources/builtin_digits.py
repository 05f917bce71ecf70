"""The built-in digits: 1,797 grey images of 8 x 8 pixels, as a source."""

import numpy as np

from smalti.common.data.config import ImagesConfig
from smalti.common.data.sources.part import Part, Source
from smalti.common.errors import UserError


def open_digits(config: ImagesConfig) -> Source:
    """Return the digits. The last 297, most of them by other writers, are the test split."""
    from sklearn.datasets import load_digits

    for setting in ("subset", "image_column", "label_column"):
        if getattr(config, setting) is not None:
            raise UserError(f"{setting} says nothing about the built-in digits; remove it")
    for setting in ("split", "data_files"):
        if getattr(config, setting).given():
            raise UserError(f"{setting} says nothing about the built-in digits; remove it")
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # from 0..16
    column = np.array([{"bytes": b"P5 8 8 255\n" + image.tobytes(), "path": None} for image in grey], dtype=object)
    sizes, labels = np.array([len(row["bytes"]) for row in column]), digits.target.astype(np.int64)
    parts = {}
    for name, rows in {"train": slice(None, 1500), "test": slice(1500, None)}.items():
        parts[name] = Part(f"split {name} of digits", column[rows], sizes[rows], labels[rows], {})
    return Source(parts, tuple("0123456789"), (), None)
