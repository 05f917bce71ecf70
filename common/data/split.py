"""One split of a source, read in batches of pixels; each row that cannot be used is named.

    ImageSplit.read(positions)  ->  ImageBatch

Shapes: B images, C channels, H x W pixels.
"""

import contextlib
import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from smalti.common.data.binarization import binarized
from smalti.common.data.config import ImagesConfig
from smalti.common.data.fingerprint import DIGEST, digest, digest_of_none
from smalti.common.data.pixels import Shape, decoded
from smalti.common.data.sources import Part, file_of, one_line
from smalti.common.ends import pass_on
from smalti.common.errors import UserError
from smalti.common.progress import passing_bar
from smalti.common.threads import map_in_order

R = TypeVar("R")
ROWS_AT_ONCE, BYTES_AT_ONCE = 256, 2**23  # that a thread decodes: of large images fewer rows
WORTH_THREADS = 4096  # bytes of a file: threads that decode smaller ones wait for each other longer than they work


class CorruptRow(NamedTuple):
    """A row that is left out or reported. (A plain tuple would leave torch's DataLoader as a list.)"""

    row: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


class ImageBatch(NamedTuple):
    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B,) int64, -1 where unlabelled
    rows: Tensor  # (B,) int64, the row's index in its split of the source
    epochs: Tensor  # (B,) int64, as the sampler gave them
    corrupt: list[CorruptRow]  # asked for and left out


class _Animated(ValueError):
    pass


def _reason(error: Exception, encoded: dict[str, Any] | None) -> str:
    """Return why a row could not be decoded, with its file where it has one."""
    reason = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", one_line(error))
    return f"{encoded['path']}: {reason}" if encoded and encoded["path"] else reason


class Encoded(NamedTuple):
    """Some rows as the source has them."""

    rows: np.ndarray  # (n,) int64
    files: list[dict[str, Any] | None]  # (n,)


class _Decoded(NamedTuple):
    """The result of decoding some rows."""

    images: Tensor  # (kept, C, H, W) uint8
    kept: np.ndarray  # (kept,) int64, which of the rows these are
    corrupt: list[CorruptRow]  # the others
    animated: list[CorruptRow]
    digests: list[bytes]  # (n,) of each file
    brightest: list[tuple[int, int]]  # of each picture of 16 bits its row, and its largest value


@contextmanager
def _bombs_unheard() -> Iterator[None]:
    """Ignore PIL's warnings of large pictures: `max_pixels` decides. (Not inside a thread: warnings are global.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        yield


class ImageSplit(torch.utils.data.Dataset):
    """Positions 0..len-1 into some rows of a source's split, read in batches.

    For a DataLoader with `batch_size=None` and a sampler of (positions, epochs): `split[positions, epochs]`.
    """

    def __init__(self, name: str, part: Part, shape: Shape, config: ImagesConfig):
        """Take all rows of a part but those whose label is wrong."""
        self.name = name
        self.rows = np.arange(len(part.labels))  # (len,) int64, ascending
        self.labels = part.labels  # (len,) int64
        # left out of the split; where it is read batch by batch, those that cannot be decoded stay in it
        self.corrupt: list[CorruptRow] = []
        self.animated: list[CorruptRow] = []  # of those met when it was taken into memory; the first frame, or left out
        self.brightest: list[tuple[int, int]] = []  # row and largest value of those met that have 16 bits a channel
        self.repeated: list[CorruptRow] = []  # whose file is another row's
        self._part, self._shape, self._config = part, shape, config
        self._digests: np.ndarray | None = None  # (N,) of the file of each row of the part
        self._pixels: Tensor | None = None  # (n, C, H, W) uint8, of this split and of those it was parted from
        self._places = self.rows  # (len,) int64, of each image in those
        for row, reason in part.wrong_labels.items():
            self._not_taken(row, reason, config.corrupt, "corrupt")
            self.corrupt.append(CorruptRow(row, reason))
        self.leave_out(list(part.wrong_labels))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def title(self) -> str:
        """Return the name that messages use: the split and its source."""
        return self._part.title

    @property
    def shape(self) -> Shape:
        """Return the size and channels each image is brought to, and how."""
        return self._shape

    def __getitem__(self, positions_and_epochs: tuple[Any, Any]) -> ImageBatch:
        return self.read(*positions_and_epochs)

    def read_rows(self, rows: Any) -> ImageBatch:
        """Return the images of these rows of the source, which must be rows of this split."""
        rows = np.asarray(rows, dtype=np.int64)
        positions = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows[positions], rows), f"rows that are not of split {self.name}"
        return self.read(positions)

    def read(self, positions: Any, epochs: Any = 0) -> ImageBatch:
        """Return the images at `positions`, a 1-D tensor, array or list; `corrupt` has those that cannot be decoded."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), positions.shape)
        kept: slice | np.ndarray = slice(None)
        corrupt: list[CorruptRow] = []
        if self._pixels is not None:
            images = self._pixels[torch.from_numpy(self._places[positions])]
        else:
            with _bombs_unheard():
                images, kept, corrupt, *_ = self._decode(self._encoded(self.rows[positions]))
        labels, rows, epochs = (
            torch.tensor(each[kept]) for each in (self.labels[positions], self.rows[positions], epochs)
        )
        images = binarized(images, rows, epochs, self._shape.binarize)
        return ImageBatch(images, labels, rows, epochs, corrupt)

    def keep_in_memory(self) -> None:
        """Decode every image now. Those that cannot be decoded leave the split and stand in `corrupt`."""
        pixels = torch.empty(len(self), *self._shape[:3], dtype=torch.uint8)
        kept: list[int] = []
        digests = np.zeros(len(self._part.labels), DIGEST)
        before = len(self.corrupt)
        with passing_bar(len(self), f"decode {self.name}") as bar, _bombs_unheard():
            for rows, found in self._in_threads(self._decode, self.rows):
                pixels[len(kept) : len(kept) + len(found.kept)] = found.images
                kept.extend(rows[found.kept])
                self.corrupt.extend(found.corrupt)
                self.animated.extend(found.animated)
                self.brightest.extend(found.brightest)
                digests[rows] = found.digests
                bar.update(len(rows))
        if not kept:
            raise UserError(
                f"{self._part.title}: none of {len(self)} images can be decoded; {self.corrupt[before].reason}"
            )
        self._pixels, self._digests = pixels[: len(kept)], self._digested(digests)
        self.rows = np.array(kept, dtype=np.int64)
        self.labels, self._places = self._part.labels[self.rows], np.arange(len(kept))

    def glance(self, number: int) -> None:
        """Look at the range of a number of images, evenly spaced; a damaged one is reported when it is read."""
        with contextlib.suppress(UserError), _bombs_unheard():
            some = np.arange(min(number, len(self))) * len(self) // min(number, len(self))
            self.brightest.extend(self._decode(self._encoded(self.rows[some])).brightest)

    @property
    def in_memory(self) -> bool:
        return self._pixels is not None

    def _in_threads(self, work: Callable[[Encoded], R], rows: np.ndarray) -> Iterator[tuple[np.ndarray, R]]:
        """Yield some rows after the others, each with what a thread made of them."""
        number = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // math.prod(self._shape[:3])))
        some = np.split(rows, range(number, len(rows), number))
        threads = None if len(rows) and self._part.sizes[rows].mean() >= WORTH_THREADS else 1
        yield from zip(some, map_in_order(work, map(self._encoded, some), threads), strict=True)

    def _encoded(self, rows: np.ndarray) -> Encoded:
        return Encoded(rows, list(self._part.column[rows]))

    def _digested(self, digests: np.ndarray) -> np.ndarray:
        """Return the digests (N,) of all rows of the part, reading those that are missing."""
        missing = np.flatnonzero(digests == b"")
        with passing_bar(len(missing), f"read files of {self.name}") as bar:
            for rows, found in self._in_threads(self._digest, missing):
                digests[rows] = found
                bar.update(len(rows))
        return digests

    def all_digests(self) -> np.ndarray:
        """Return 16 bytes of the file of every row of the part, (N,), including those left out."""
        if self._digests is None:
            self._digests = self._digested(np.zeros(len(self._part.labels), DIGEST))
        return self._digests

    def digests(self) -> np.ndarray:
        """Return 16 bytes of the file of each row, (len,)."""
        return self.all_digests()[self.rows]

    def leave_out(self, rows: Sequence[int]) -> None:
        """Remove these rows from the split."""
        if len(rows):
            self._keep(~np.isin(self.rows, rows))

    def _keep(self, kept: np.ndarray) -> None:
        """Keep only the positions that `kept`, (len,) bool, marks."""
        if not kept.any():
            raise UserError(f"{self._part.title}: nothing is left of {len(self)} rows")
        self.rows, self.labels, self._places = self.rows[kept], self.labels[kept], self._places[kept]

    def named(self, name: str) -> "ImageSplit":
        """Return the same split under another name."""
        return self.of_rows(name, np.ones(len(self._part.labels), dtype=bool))

    def of_rows(self, name: str, chosen: np.ndarray) -> "ImageSplit":
        """Return the split of the rows that `chosen`, (N,) bool over the part, marks; it shares this one's pixels."""
        part = copy.copy(self)
        part.name = name
        part._keep(chosen[self.rows])
        part.corrupt = [row for row in self.corrupt if chosen[row.row]]
        part.animated = [row for row in self.animated if chosen[row.row]]
        part.brightest = [(row, value) for row, value in self.brightest if chosen[row]]
        part.repeated = []
        return part

    def _not_taken(self, row: int, reason: str, rule: str, setting: str) -> None:
        """Raise `UserError` where the rule for such a row is to refuse it."""
        if rule == "refuse":
            raise UserError(
                f"{self._part.title}, row {row}: {reason}; mend or remove it, or leave such images out "
                f"with {setting}: skip"
            )

    def _file(self, row: int, encoded: dict[str, Any] | None) -> bytes:
        """Return the row's file. Raises `UserError` unless it is the one that was there when the set was opened."""
        size = int(self._part.sizes[row])
        try:
            file = file_of(encoded)
        except FileNotFoundError:
            if not size:
                raise
            file = b""
        changed = None
        if size and len(file) != size:
            changed = f"had {size} bytes when the set was opened, has {len(file)} now"
        if self._digests is not None and size and changed is None and digest(file) != self._digests[row]:
            changed = "is another file than when the set was opened"
        if changed:
            where = f"{encoded['path']}, " if encoded and encoded["path"] else ""
            raise UserError(
                f"{self._part.title}, row {row}: {where}{changed}: it is being changed while it is read; let that end, "
                "then start again"
            )
        return file

    def _digest(self, encoded: Encoded) -> list[bytes]:
        """Return the digest of each file, or that of its row where it cannot be read."""
        found = []
        for row, each in zip(encoded.rows.tolist(), encoded.files, strict=True):
            try:
                found.append(digest(file_of(each)))
            except (OSError, ValueError) as error:
                pass_on(error)
                found.append(digest_of_none(self.name, row))
        return found

    def _decode(self, encoded: Encoded) -> _Decoded:
        images = torch.empty(len(encoded.rows), *self._shape[:3], dtype=torch.uint8)
        found = _Decoded(images, np.empty(0, np.int64), [], [], [], [])
        kept: list[int] = []
        for i, (row, each) in enumerate(zip(encoded.rows.tolist(), encoded.files, strict=True)):
            found.digests.append(digest_of_none(self.name, row))
            try:
                file = self._file(row, each)
                found.digests[-1] = digest(file)
                images[len(kept)], frames, brightest = decoded(file, self._shape, self._config.max_pixels)
                found.brightest.extend([] if brightest is None else [(row, brightest)])
                if frames > 1:
                    found.animated.append(CorruptRow(row, f"{frames} frames"))
                if frames > 1 and self._config.animated != "first":
                    raise _Animated(f"an animation of {frames} frames")
                kept.append(i)
            except UserError:
                raise
            except _Animated as error:
                found.corrupt.append(CorruptRow(row, _reason(error, each)))
                self._not_taken(row, f"the image is {found.corrupt[-1].reason}", self._config.animated, "animated")
            except Exception as error:  # damaged files raise nearly anything in PIL: OSError, SyntaxError, KeyError
                pass_on(error)
                found.corrupt.append(CorruptRow(row, _reason(error, each)))
                told = f"the image cannot be decoded ({found.corrupt[-1].reason})"
                self._not_taken(row, told, self._config.corrupt, "corrupt")
        return found._replace(images=images[: len(kept)], kept=np.array(kept, dtype=np.int64))


def look_for_duplicates(splits: Mapping[str, ImageSplit], rule: str) -> None:
    """Find rows whose file another row has, and apply the rule to them.

    Held-out splits count first, then validation, then train: a picture in both leaves train.
    """
    seen: dict[bytes, str] = {}
    order = {"train": 2, "validation": 1}
    for name in sorted(splits, key=lambda name: order.get(name, 0)):
        split, again = splits[name], []
        for row, file in zip(split.rows.tolist(), split.digests().tolist(), strict=True):
            first = seen.setdefault(file, f"row {row} of {name}")
            if first != f"row {row} of {name}":
                split.repeated.append(CorruptRow(row, f"the same file as {first}"))
                again.append(row)
        if again:
            split._not_taken(*split.repeated[0], rule, "duplicates")
        if rule == "skip":
            split.corrupt.extend(split.repeated)
            split.leave_out(again)
