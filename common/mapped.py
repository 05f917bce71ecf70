"""Rows of numbers that stay on the disk: only those asked for are read, and processes share the pages.

`datasets` keeps the columns of Parquet files as Arrow files in its cache, which the system maps into memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class MappedRows:
    """An array (N, T) in chunks of rows, indexed along its first axis as an array is."""

    ndim = 2

    def __init__(self, chunks: Sequence[np.ndarray]):
        """Take arrays (n, T) of one type, N rows together and at least one."""
        self.chunks, self.dtype = [chunk for chunk in chunks if len(chunk)], chunks[0].dtype
        self.starts = np.cumsum([0, *map(len, self.chunks)])
        self.shape = int(self.starts[-1]), chunks[0].shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows (n, T), a copy: `rows` is a slice, a range, or whole numbers (n,)."""
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        wanted = np.asarray(rows, dtype=np.int64)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows must lie in [0, {len(self)}), got {wanted.min()} to {wanted.max()}")
        chunk = np.searchsorted(self.starts, wanted, side="right") - 1
        found = np.empty((len(wanted), self.shape[1]), self.dtype)
        for number in np.unique(chunk):
            here = chunk == number
            found[here] = self.chunks[number][wanted[here] - self.starts[number]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.chunks).astype(dtype or self.dtype, copy=False)


def map_column(paths: Sequence[Path], column: str, length: int) -> MappedRows:
    """Return a column of lists of `length` numbers of Parquet files, mapped.

    Raises:
        UserError: the cache of `datasets` cannot be written.
        OSError, ValueError: a file is damaged, or has other lists.
    """
    from datasets import Dataset

    from smalti.common.data.sources.cache import prepare_datasets, refuse_cache

    prepare_datasets()
    try:
        table = Dataset.from_parquet([str(path) for path in paths], columns=[column]).data
    except Exception as error:  # `datasets` wraps whatever went wrong
        refuse_cache(error)
        raise ValueError(str(error)) from error
    chunks = []
    for chunk in table.column(column).chunks:
        flat = chunk.flatten().to_numpy(zero_copy_only=True)
        if flat.size != len(chunk) * length:
            raise ValueError(f"a row must have {length} numbers, got {flat.size / max(1, len(chunk)):g}")
        chunks.append(flat.reshape(-1, length))
    return MappedRows(chunks)
