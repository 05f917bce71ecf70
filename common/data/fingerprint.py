"""The identity of images: a digest of every file, and one fingerprint of a whole source.

    a file  ->  digest, 16 bytes        every row's digest and label, in order, and the class names  ->  fingerprint

Every byte of every file counts. Names, times and places of files do not: a copy is the same source.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from smalti.common.data.sources import Part

DIGEST = "S16"  # numpy's type of a digest


def digest(file: bytes) -> bytes:
    """Return 16 bytes of a file's content."""
    return hashlib.blake2b(file, digest_size=15).digest() + b"."  # numpy strips zeros from the end of a byte string


def digest_of_none(split: str, row: int) -> bytes:
    """Return a digest of its own for a row without a readable file."""
    return digest(f"no file: row {row} of {split}".encode())


def uniform(digests: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) for each digest, a function of the file and of nothing else."""
    first = np.ascontiguousarray(digests, DIGEST).view(np.uint8).reshape(-1, 16)[:, :8]
    return (np.ascontiguousarray(first).view("<u8")[:, 0] >> np.uint64(11)) * 2.0**-53


def images_fingerprint(
    digests: Mapping[str, np.ndarray], parts: Mapping[str, Part], class_names: Sequence[str] | None
) -> str:
    """Return the SHA-256 of each row's file and label, in the order of the rows, and of the class names.

    Args:
        digests: of the rows of each part, (N,).
    """
    found = hashlib.sha256(json.dumps(class_names).encode())
    for name, part in sorted(parts.items()):
        found.update(json.dumps([name, len(part.labels), sorted(part.wrong_labels)]).encode())
        found.update(part.labels.astype("<i8").tobytes() + digests[name].astype(DIGEST).tobytes())
    return found.hexdigest()
