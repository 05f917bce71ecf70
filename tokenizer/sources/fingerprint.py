"""The fingerprint of the images of a source."""

import hashlib
import json

import numpy as np

from tokenizer.sources.columns import file_of
from tokenizer.sources.part import Part

FINGERPRINTED = 256  # rows a split whose bytes the fingerprint covers


def fingerprint(parts: dict[str, Part], class_names: tuple[str, ...] | None) -> str:
    """SHA-256 over every row's size and label, and the bytes of up to 256 rows a split.

    The fingerprints of `datasets` change with the folder's place and with the time of a copy; this one does not.
    """
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for name, part in sorted(parts.items()):
        digest.update(name.encode() + part.sizes.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
        there = np.flatnonzero(part.sizes)
        some = there[np.linspace(0, len(there) - 1, min(len(there), FINGERPRINTED)).astype(np.int64)]
        for encoded in part.column[some]:
            digest.update(file_of(encoded))
    return digest.hexdigest()
