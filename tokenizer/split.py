"""One split of a source, read in batches of pixels; what of it cannot be used is named by its row.

    ImageSplit.read(positions)  ->  ImageBatch

Shapes: B images, C channels, H x W pixels.
"""

import contextlib
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from common.errors import UserError
from common.progress import passing_bar
from tokenizer.config import ImagesConfig
from tokenizer.pixels import Shape, decoded
from tokenizer.sources import Part, file_of, one_line

ROWS_AT_ONCE = 1024


class CorruptRow(NamedTuple):
    """A row that is left out, or worth a word. (A plain tuple would leave torch's DataLoader as a list.)"""

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
    """Why a row could not be decoded, with its file where it has one."""
    reason = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", one_line(error))
    return f"{encoded['path']}: {reason}" if encoded and encoded["path"] else reason


class ImageSplit(torch.utils.data.Dataset):
    """Positions 0..len-1 into some rows of a source's split, read in batches.

    For a DataLoader with `batch_size=None` and a sampler of (positions, epochs): `split[positions, epochs]`.
    """

    def __init__(self, name: str, part: Part, rows: np.ndarray, shape: Shape, config: ImagesConfig):
        self.name = name
        self.rows = rows  # (len,) int64, ascending
        self.labels = part.labels[rows]  # (len,) int64
        self.corrupt: list[CorruptRow] = []  # left out of the split; read batch by batch, those that cannot be decoded are not
        self.animated: list[CorruptRow] = []  # of those met when it was taken into memory; the first frame, or left out
        self.brightest: list[int] = []  # of those met that have 16 bits a channel, the largest value of each
        self.repeated: list[CorruptRow] = []  # whose file is another row's, where that was looked for
        self._part, self._shape, self._config = part, shape, config
        self._pixels: Tensor | None = None  # (len, C, H, W) uint8
        self._digests: np.ndarray | None = None  # (len,) of each file
        wrong = [i for i, row in enumerate(rows.tolist()) if row in part.wrong_labels]
        for i in wrong:
            self._not_taken(int(rows[i]), part.wrong_labels[int(rows[i])], config.corrupt, "corrupt")
            self.corrupt.append(CorruptRow(int(rows[i]), part.wrong_labels[int(rows[i])]))
        self.leave_out(wrong)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> Shape:
        """What each image is brought to, and how."""
        return self._shape

    def __getitem__(self, positions_and_epochs: tuple[Any, Any]) -> ImageBatch:
        return self.read(*positions_and_epochs)

    def read_rows(self, rows: Any) -> ImageBatch:
        """The images of these rows of the source, which must be of this split."""
        rows = np.asarray(rows, dtype=np.int64)
        positions = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows[positions], rows), f"rows that are not of split {self.name}"
        return self.read(positions)

    def read(self, positions: Any, epochs: Any = 0) -> ImageBatch:
        """The images at `positions`, a 1-D tensor, array or list; those that cannot be decoded stand in `corrupt`."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), positions.shape)
        kept: slice | np.ndarray = slice(None)
        corrupt: list[CorruptRow] = []
        if self._pixels is not None:
            images = self._pixels[torch.from_numpy(positions)]
        else:
            images, kept, corrupt, *_ = self._decode(self.rows[positions])
        labels, rows, epochs = (torch.tensor(each[kept]) for each in (self.labels[positions], self.rows[positions], epochs))
        return ImageBatch(images, labels, rows, epochs, corrupt)

    def keep_in_memory(self) -> None:
        """Decode every image now. The split shrinks by those that cannot be decoded, and remembers them."""
        pixels = torch.empty(len(self), *self._shape[:3], dtype=torch.uint8)
        kept: list[int] = []
        digests: list[bytes] = []
        before = len(self.corrupt)
        with passing_bar(len(self), f"decode {self.name}") as bar:
            for start in range(0, len(self), ROWS_AT_ONCE):
                images, here, corrupt, animated, some, brightest = self._decode(self.rows[start : start + ROWS_AT_ONCE])
                pixels[len(kept) : len(kept) + len(here)] = images
                kept.extend(start + here)
                self.corrupt.extend(corrupt)
                self.animated.extend(animated)
                self.brightest.extend(brightest)
                digests.extend(some)
                bar.update(len(here) + len(corrupt))
        if not kept:
            raise UserError(f"{self._part.title}: none of {len(self)} images can be decoded; {self.corrupt[before].reason}")
        self.rows, self.labels, self._pixels = self.rows[kept], self.labels[kept], pixels[: len(kept)]
        self._digests = np.array(digests, dtype="S16")

    def glance(self, number: int) -> None:
        """Look at the range of so many images, evenly spaced. One that is damaged is told of when it is read."""
        with contextlib.suppress(UserError):
            some = np.arange(min(number, len(self))) * len(self) // min(number, len(self))
            self.brightest.extend(self._decode(self.rows[some]).brightest)

    @property
    def in_memory(self) -> bool:
        return self._pixels is not None

    def digests(self) -> np.ndarray:
        """(len,) 16 bytes of each row's file; of one that is not there its row, as it is like no other."""
        if self._digests is None:
            found, bar = [], passing_bar(len(self), f"compare files of {self.name}")
            for rows in np.split(self.rows, range(ROWS_AT_ONCE, len(self), ROWS_AT_ONCE)):
                for row, encoded in zip(rows.tolist(), self._part.column[rows], strict=True):
                    try:
                        found.append(_digest(file_of(encoded)))
                    except (OSError, ValueError):
                        found.append(_digest(f"{self.name} {row}".encode()))
                bar.update(len(rows))
            bar.close()
            self._digests = np.array(found, dtype="S16")
        return self._digests

    def leave_out(self, positions: Sequence[int]) -> None:
        """The split shrinks by the rows at these positions."""
        if not len(positions):
            return
        kept = np.setdiff1d(np.arange(len(self)), positions)
        if not len(kept):
            raise UserError(f"{self._part.title}: nothing is left of {len(self)} rows")
        self.rows, self.labels = self.rows[kept], self.labels[kept]
        if self._pixels is not None:
            self._pixels = self._pixels[torch.from_numpy(kept)]
        if self._digests is not None:
            self._digests = self._digests[kept]

    def _not_taken(self, row: int, reason: str, rule: str, setting: str) -> None:
        """Raises `UserError` where the rule for such a row is to refuse it."""
        if rule == "refuse":
            raise UserError(
                f"{self._part.title}, row {row}: {reason}; mend or remove it, or leave such images out with {setting}: skip"
            )

    def _file(self, row: int, encoded: dict[str, Any] | None) -> bytes:
        """The row's file, which must be the one that was there when the set was opened."""
        size = int(self._part.sizes[row])
        try:
            file = file_of(encoded)
        except FileNotFoundError:
            if not size:
                raise
            file = b""
        if size and len(file) != size:
            where = f"{encoded['path']}, " if encoded and encoded["path"] else ""
            raise UserError(
                f"{self._part.title}, row {row}: {where}had {size} bytes when the set was opened, has {len(file)} now: it "
                "is being changed while it is read; let that end, then start again"
            )
        return file

    def _decode(self, rows: np.ndarray) -> "_Decoded":
        images = torch.empty(len(rows), *self._shape[:3], dtype=torch.uint8)
        found = _Decoded(images, np.empty(0, np.int64), [], [], [], [])
        kept: list[int] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # `max_pixels` decides
            for i, (row, encoded) in enumerate(zip(rows.tolist(), self._part.column[rows], strict=True)):
                file = b""
                try:
                    file = self._file(row, encoded)
                    images[len(kept)], frames, brightest = decoded(file, self._shape, self._config.max_pixels)
                    found.brightest.extend([] if brightest is None else [brightest])
                    if frames > 1:
                        found.animated.append(CorruptRow(row, f"{frames} frames"))
                    if frames > 1 and self._config.animated != "first":
                        raise _Animated(f"an animation of {frames} frames")
                    kept.append(i)
                    found.digests.append(_digest(file))
                except UserError:
                    raise
                except _Animated as error:
                    found.corrupt.append(CorruptRow(row, _reason(error, encoded)))
                    self._not_taken(row, f"the image is {found.corrupt[-1].reason}", self._config.animated, "animated")
                except Exception as error:  # damaged files raise nearly anything in PIL: OSError, SyntaxError, KeyError
                    found.corrupt.append(CorruptRow(row, _reason(error, encoded)))
                    told = f"the image cannot be decoded ({found.corrupt[-1].reason})"
                    self._not_taken(row, told, self._config.corrupt, "corrupt")
        return found._replace(images=images[: len(kept)], kept=np.array(kept, dtype=np.int64))


class _Decoded(NamedTuple):
    """What came of some rows."""

    images: Tensor  # (kept, C, H, W) uint8
    kept: np.ndarray  # (kept,) int64, which of the rows these are
    corrupt: list[CorruptRow]  # the others
    animated: list[CorruptRow]
    digests: list[bytes]  # (kept,) of each file
    brightest: list[int]  # the largest value of each picture of 16 bits


def _digest(file: bytes) -> bytes:
    return hashlib.blake2b(file, digest_size=15).digest() + b"."  # numpy strips zeros from the end of a byte string


def look_for_duplicates(splits: Mapping[str, ImageSplit], rule: str) -> None:
    """Find rows whose file another row has, and deal with them by the rule. What is held out comes first, then validation, then
    train: a picture that is in both is left out of train."""
    seen: dict[bytes, str] = {}
    order = {"train": 2, "validation": 1}
    for name in sorted(splits, key=lambda name: order.get(name, 0)):
        split, again = splits[name], []
        for position, digest in enumerate(split.digests().tolist()):
            row, first = int(split.rows[position]), seen.setdefault(digest, f"row {split.rows[position]} of {name}")
            if first != f"row {row} of {name}":
                split.repeated.append(CorruptRow(row, f"the same file as {first}"))
                again.append(position)
        if again:
            split._not_taken(*split.repeated[0], rule, "duplicates")
        if rule == "skip":
            split.corrupt.extend(split.repeated)
            split.leave_out(again)
