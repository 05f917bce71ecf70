"""Images from wherever they lie, as batches of pixels: the one place that reads pictures.

    source  ->  ImageSplit.read  ->  ImageBatch  ->  augment | centre | view  ->  to_float

A set whose decoded pixels fit in `memory` is decoded once; a larger one is read from disk batch by batch. PIL decodes:
torchvision.io ends the process on some damaged files.

Shapes: B images, C channels (1, 3 or 4), H x W pixels wanted; H' = H + margin, W' = W + margin pixels read.
"""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from common.config import build, read_yaml
from common.errors import UserError
from tokenizer.config import ImagesConfig, KMeansConfig, TokenizerConfig
from tokenizer.sources import VALIDATION_NAMES, Part, file_of, fingerprint, on_main, one_line, open_source

ROWS_AT_ONCE = 1024
ANIMATED = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}  # not MPO: a phone's JPEG with its preview is no animation
NAMED = 8  # rows of one kind that are named; the others are counted


class CorruptRow(NamedTuple):
    """A row that is left out, or worth a word. (A plain tuple would leave torch's DataLoader as a list.)"""

    row: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


class ImageBatch(NamedTuple):
    images: Tensor  # (B, C, H', W') uint8
    labels: Tensor  # (B,) int64, -1 where unlabelled
    rows: Tensor  # (B,) int64, the row's index in its split of the source
    epochs: Tensor  # (B,) int64, as the sampler gave them
    corrupt: list[CorruptRow]  # asked for and left out


# ----------------------------------------------------------------------------------------- one encoded row to pixels


class _Shape(NamedTuple):
    """What every image is brought to, and how."""

    channels: int
    height: int
    width: int
    resize: str
    black_and_white: bool


def _in_mode(image: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    """Whatever PIL opened as L, RGB or RGBA. Transparency is kept for four channels and laid on white for fewer."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save them as 8 or 16 bit")
    if image.mode.startswith("I"):  # PIL's own conversion clips 16 bits at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels must lie in 0..65535")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data and channels != 4:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _resized(pixels: Tensor, shape: _Shape) -> Tensor:
    """(C, h, w) to the shape's height and width. Cropped first: a strip of 1 x 60,000 pixels would outgrow memory."""
    size = [shape.height, shape.width]
    if list(pixels.shape[1:]) == size:
        return pixels
    if shape.resize == "crop":
        scale = max(want / have for want, have in zip(size, pixels.shape[1:], strict=True))
        seen = [min(have, max(1, round(want / scale))) for want, have in zip(size, pixels.shape[1:], strict=True)]
        pixels = transforms.center_crop(pixels, seen)
    if shape.channels < 4:
        return transforms.resize(pixels, size, antialias=True)
    alpha = pixels[3:] / 255  # colours weigh by their opacity: what is transparent must not bleed into the edges
    mixed = transforms.resize(torch.cat([pixels[:3] * alpha, alpha]), size, antialias=True)
    colours = mixed[:3] / mixed[3:].clamp(min=1e-3)
    return torch.cat([colours, mixed[3:] * 255]).round().clamp(0, 255).to(torch.uint8)


def _pixels_of(image: PIL.Image.Image, shape: _Shape) -> Tensor:
    """(C, H', W') uint8."""
    pixels = np.array(_in_mode(image, shape.channels))  # (h, w) or (h, w, C)
    pixels = torch.from_numpy(pixels).view(*pixels.shape[:2], shape.channels)
    pixels = _resized(pixels.permute(2, 0, 1), shape)
    return torch.where(pixels > 127, 255, 0).to(torch.uint8) if shape.black_and_white else pixels


def _decoded(file: bytes, shape: _Shape, max_pixels: int) -> tuple[Tensor, int]:
    """(C, H', W') uint8, and how many frames the file has. Raises whatever PIL raises."""
    with PIL.Image.open(io.BytesIO(file)) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels are more than images.max_pixels {max_pixels}")
        frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        PIL.ImageOps.exif_transpose(image, in_place=True)
        return _pixels_of(image, shape), frames


class _Animated(ValueError):
    pass


# ------------------------------------------------------------------------------------------------- splits of a source


def _reason(error: Exception, encoded: dict[str, Any] | None) -> str:
    """Why a row could not be decoded, with its file where it has one."""
    reason = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", one_line(error))
    return f"{encoded['path']}: {reason}" if encoded and encoded["path"] else reason


class ImageSplit(torch.utils.data.Dataset):
    """Positions 0..len-1 into some rows of a source's split, read in batches.

    For a DataLoader with `batch_size=None` and a sampler of (positions, epochs): `split[positions, epochs]`.
    """

    def __init__(self, name: str, part: Part, rows: np.ndarray, shape: _Shape, config: ImagesConfig):
        self.name = name
        self.rows = rows  # (len,) int64, ascending
        self.labels = part.labels[rows]  # (len,) int64
        self.corrupt: list[CorruptRow] = []  # left out of the split; read batch by batch, those that cannot be decoded are not
        self.animated: list[CorruptRow] = []  # of which the first frame was taken into memory
        self.repeated: list[CorruptRow] = []  # whose file is another row's, where that was looked for
        self._part, self._shape, self._config = part, shape, config
        self._pixels: Tensor | None = None  # (len, C, H', W') uint8
        self._digests: np.ndarray | None = None  # (len,) of each file
        wrong = [i for i, row in enumerate(rows.tolist()) if row in part.wrong_labels]
        for i in wrong:
            self._not_taken(int(rows[i]), part.wrong_labels[int(rows[i])], config.corrupt, "corrupt")
            self.corrupt.append(CorruptRow(int(rows[i]), part.wrong_labels[int(rows[i])]))
        self.leave_out(wrong)

    def __len__(self) -> int:
        return len(self.rows)

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
        if self._pixels is not None:
            images, kept, corrupt = self._pixels[torch.from_numpy(positions)], slice(None), []
        else:
            images, kept, corrupt, _, _ = self._decode(self.rows[positions])
        labels, rows = self.labels[positions][kept], self.rows[positions][kept]
        return ImageBatch(images, *map(torch.tensor, (labels, rows, epochs[kept])), corrupt)

    def keep_in_memory(self) -> None:
        """Decode every image now. The split shrinks by those that cannot be decoded, and remembers them."""
        pixels = torch.empty(len(self), *self._shape[:3], dtype=torch.uint8)
        kept, digests, before = [], [], len(self.corrupt)
        with tqdm(
            total=len(self), desc=f"decode {self.name}", unit="img", delay=2, disable=None if on_main() else True
        ) as progress:
            for start in range(0, len(self), ROWS_AT_ONCE):
                images, here, corrupt, animated, some = self._decode(self.rows[start : start + ROWS_AT_ONCE])
                pixels[len(kept) : len(kept) + len(here)] = images
                kept.extend(start + here)
                self.corrupt.extend(corrupt)
                self.animated.extend(animated)
                digests.extend(some)
                progress.update(len(here) + len(corrupt))
        if not kept:
            raise UserError(f"{self._part.title}: none of {len(self)} images can be decoded; {self.corrupt[before].reason}")
        self.rows, self.labels, self._pixels = self.rows[kept], self.labels[kept], pixels[: len(kept)]
        self._digests = np.array(digests, dtype="S16")

    @property
    def in_memory(self) -> bool:
        return self._pixels is not None

    def digests(self) -> np.ndarray:
        """(len,) 16 bytes of each row's file; of one that is not there its row, as it is like no other."""
        if self._digests is None:
            found = []
            for rows in np.split(self.rows, range(ROWS_AT_ONCE, len(self), ROWS_AT_ONCE)):
                for row, encoded in zip(rows.tolist(), self._part.column[rows], strict=True):
                    try:
                        found.append(_digest(file_of(encoded)))
                    except (OSError, ValueError):
                        found.append(_digest(f"{self.name} {row}".encode()))
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
        found = _Decoded(images, np.empty(0, np.int64), [], [], [])
        kept: list[int] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # `max_pixels` decides
            for i, (row, encoded) in enumerate(zip(rows.tolist(), self._part.column[rows], strict=True)):
                file = b""
                try:
                    file = self._file(row, encoded)
                    images[len(kept)], frames = _decoded(file, self._shape, self._config.max_pixels)
                    if frames > 1 and self._config.animated != "first":
                        raise _Animated(f"an animation of {frames} frames")
                    if frames > 1:
                        found.animated.append(CorruptRow(row, f"{frames} frames"))
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

    images: Tensor  # (kept, C, H', W') uint8
    kept: np.ndarray  # (kept,) int64, which of the rows these are
    corrupt: list[CorruptRow]  # the others
    animated: list[CorruptRow]
    digests: list[bytes]  # (kept,) of each file


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


class ImageSet(NamedTuple):
    splits: dict[str, ImageSplit]  # train, validation, and whatever else the source has
    class_names: tuple[str, ...] | None
    fingerprint: str  # of the images and labels themselves: the same wherever they are copied

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each split its images, and how many were left out, repeated or animated."""
        return {
            name: {
                "images": len(split), "left_out": len(split.corrupt), "repeated": len(split.repeated),
                "animated": len(split.animated),
            }
            for name, split in self.splits.items()
        }  # fmt: skip

    def remarks(self) -> Iterator[str]:
        """What a user should know of the rows: each kind's first ones by name, and how many there are."""
        for name, split in self.splits.items():
            skipped = set(split.repeated) & set(split.corrupt)
            kinds = {
                "left out": split.corrupt,
                "animated, the first frame taken": split.animated,
                "repeated and kept": [] if skipped else split.repeated,
            }
            for kind, rows in kinds.items():
                for row in rows[:NAMED]:
                    yield f"{name}, {kind}: {row}"
                if rows:
                    yield f"{name}: {len(rows)} {kind}, {len(split)} images remain"


# --------------------------------------------------------------------------------------------------- the set as a whole


def _with_validation(parts: dict[str, Part], share: float) -> dict[str, tuple[Part, np.ndarray]]:
    """Each split's part and rows (len,), ascending; without a split for validation some rows of train are held out.

    Which ones is a hash of their index: numpy may change its permutations, and a resumed run must not see the others.
    """
    rows = {name: (part, np.arange(len(part.labels))) for name, part in parts.items()}
    train, everything = rows.pop("train")
    given = next((name for name in VALIDATION_NAMES if name in rows), None)
    if given is not None:
        return {"train": (train, everything), "validation": rows.pop(given), **rows}
    if len(everything) == 1:
        raise UserError(f"{train.title} has 1 image; at least 2 are needed, one to train on and one to validate with")
    shuffled = np.argsort(_mixed(everything.astype(np.uint64)), kind="stable")
    count = min(max(1, round(share * len(everything))), len(everything) - 1)
    held_out, kept = np.sort(shuffled[:count]), np.sort(shuffled[count:])
    return {"train": (train, kept), "validation": (train, held_out), **rows}


def open_images(config: ImagesConfig, size: tuple[int, int], channels: int) -> ImageSet:
    """The source's images, to be read as (channels, *size) with the margin around; decoded now where memory allows.

    Raises:
        UserError: there is no such source or column, a split is empty, class names disagree between splits, or
            (when decoded now, `corrupt: refuse`) an image is damaged.
    """
    if channels not in (1, 3, 4):
        raise UserError(f"images have 1 channel (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    parts, class_names = open_source(config)
    shape = _Shape(channels, size[0] + config.margin, size[1] + config.margin, config.resize, config.black_and_white)
    splits = {
        name: ImageSplit(name, part, rows, shape, config)
        for name, (part, rows) in _with_validation(parts, config.validation_share).items()
    }
    if sum(map(len, splits.values())) * math.prod(shape[:3]) <= config.memory * 2**30:
        for split in splits.values():
            split.keep_in_memory()
    if config.duplicates != "keep" or all(split.in_memory for split in splits.values()):  # else it costs a pass over the disk
        look_for_duplicates(splits, config.duplicates)
    return ImageSet(splits, class_names, fingerprint(parts, class_names))


def run_images(run: Path, source: str | None = None) -> ImagesConfig:
    """How the tokenizer of RUN/tokenizer reads its images, or would read another `source`."""
    path = run / "config.yaml"
    images = build(ImagesConfig, read_yaml(path).get("images", {}), str(path))
    return images if source is None else images.model_copy(update={"source": source, "subset": None})


def open_run_images(run: Path, tokenizer: TokenizerConfig | KMeansConfig, source: str | None = None) -> ImageSet:
    """The images that the tokenizer of RUN/tokenizer was trained with, or of another `source`, read as it read them."""
    return open_images(run_images(run, source), tokenizer.image_size, tokenizer.image_channels)


def held_out(splits: Mapping[str, ImageSplit], name: str | None = None) -> ImageSplit:
    """The split that figures are of: the named one, or else test, or else validation. Raises `UserError` if there is none."""
    name = name or ("test" if "test" in splits else "validation")
    if name not in splits:
        raise UserError(f"there is no split {name!r}; the images have {', '.join(splits)}")
    return splits[name]


# --------------------------------------------------------------------------- views of an image: a function of its row


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014): uint64 to uint64, each bit depending on all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniforms(seed: int, epochs: np.ndarray, rows: np.ndarray, count: int) -> Tensor:
    """(count, B) in [0, 1), a function of seed, epoch, row and nothing else."""
    state = _mixed(np.full(rows.shape, seed % 2**64, dtype=np.uint64))
    state = _mixed(_mixed(state ^ epochs.astype(np.uint64)) ^ rows.astype(np.uint64))
    drawn = np.stack([_mixed(state + np.uint64(i)) >> np.uint64(11) for i in range(count)])
    return torch.from_numpy(drawn.astype(np.float64) * 2.0**-53)


def augment(images: Tensor, seed: int, rows: Any, epochs: Any, config: ImagesConfig, size: tuple[int, int]) -> Tensor:
    """images (B, C, H', W') cropped at random inside the margin, half of them mirrored where `flip`: (B, C, H, W)."""
    B, C, _, wide = images.shape
    H, W = size
    rows = np.asarray(rows, dtype=np.int64)
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), rows.shape)
    down, right, mirror = _uniforms(seed, epochs, rows, 3)[..., None]  # (B, 1) each
    y = (down * (config.margin + 1)).long() + torch.arange(H)  # (B, H)
    x = (right * (config.margin + 1)).long() + torch.arange(W)  # (B, W)
    if config.flip:
        x = torch.where(mirror < 0.5, x.flip(1), x)
    places = (y[:, :, None] * wide + x[:, None, :]).view(B, 1, H * W).to(images.device)
    return images.flatten(2).gather(2, places.expand(B, C, H * W)).view(B, C, H, W)  # 4 to 20 times indexing's speed


def centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images (B, C, H', W') without their margin: (B, C, H, W)."""
    top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def view(images: Tensor, seed: int, rows: Any, index: int, config: ImagesConfig, size: tuple[int, int]) -> Tensor:
    """View 0 is the image, 1 its mirror (where `flip`), the further ones are augmentations: (B, C, H, W)."""
    if index == 0:
        return centre(images, size)
    if index == 1 and config.flip:
        return centre(images, size).flip(-1)
    return augment(images, seed, rows, index, config, size)


# ------------------------------------------------------------------------------------------------- bytes and numbers


def to_float(images: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded and clamped. Inverse of `to_float`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_pil(
    pictures: Sequence[PIL.Image.Image], size: tuple[int, int], channels: int, *, black_and_white: bool = False
) -> Tensor:
    """Pictures of any size and mode, turned as their EXIF says, cropped and resized: (B, C, H, W) uint8."""
    shape = _Shape(channels, *size, "crop", black_and_white)
    return torch.stack([_pixels_of(PIL.ImageOps.exif_transpose(picture), shape) for picture in pictures])


def to_pil(images: Tensor) -> list[PIL.Image.Image]:
    """images (B, C, H, W) uint8 as L, RGB or RGBA pictures."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
