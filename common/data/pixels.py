"""Pictures to pixels and back.

    an encoded file | a PIL picture  ->  (C, H, W) uint8  ->  to_float  ->  [-1, 1]

PIL decodes, since torchvision.io ends the process on some damaged files.

Shapes: B images, C channels (1, 3 or 4), H x W pixels.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from smalti.common.raster import open_picture

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of a picture, by its channels
WHITE = 65_535  # of 16 bits a channel
BITS, PHOTOMETRIC, PLANES = 258, 262, 284  # tags of a TIFF
ANIMATED = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}  # not MPO: a phone's JPEG with its preview is no animation


class Shape(NamedTuple):
    """The size and channels every image is brought to, and how."""

    channels: int
    height: int
    width: int
    resize: str
    binarize: str  # as the setting says; `nearest` happens in decoding, the draws of others when a split is read
    white: int = WHITE  # the value that is white where a channel has 16 bits


class Decoded(NamedTuple):
    pixels: Tensor  # (C, H, W) uint8
    frames: int  # that the file has
    brightest: int | None  # the largest value, where a channel has 16 bits


def _raw_mode(image: PIL.Image.Image) -> str:
    """Return how pixels lie in an undecoded file, such as `RGB;16B`; PIL's own mode claims 8 bits for those."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _refuse_planes(image: PIL.Image.Image, white: int) -> None:
    """Raise `ValueError` for an undecoded TIFF with a plane for each channel whose 16 bits PIL would read wrongly."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANES) != 2 or max(tags.get(BITS, (1,))) <= 8:
        return
    plain = image.tile[0].codec_name == "raw"  # type: ignore[attr-defined]  # taken for planes of 8 bits
    if plain or (white < WHITE and not image.mode.startswith("I")):  # of compressed ones the upper bytes are right
        raise ValueError(
            "a TIFF with 16 bits a channel and a plane for each cannot be read so; save it with the channels of a "
            "pixel side by side (PlanarConfiguration 1)"
        )


def _white_is_zero(image: PIL.Image.Image) -> bool:
    """Return whether 0 is white in a grey TIFF of 16 bits; of 8 bits PIL inverts such a one itself."""
    tags = getattr(image, "tag_v2", {PHOTOMETRIC: 1})
    return image.mode.startswith("I") and tags.get(PHOTOMETRIC, 0) == 0  # PIL's default too


def _low_bytes(file: bytes, raw: str) -> PIL.Image.Image:
    """Return the lower bytes of a picture of 16 bits a channel, by telling PIL the other byte order."""
    if not raw.startswith("RGB;16"):
        raise ValueError(f"images.white is for grey and RGB of 16 bits; {raw} is read over its whole range alone")
    big = raw.endswith("B") or (raw.endswith("N") and sys.byteorder == "big")
    image = open_picture(file)
    tiles = image.tile  # type: ignore[attr-defined]  # every picture from a file has it, until it is decoded
    other = "RGB;16L" if big else "RGB;16B"
    image.tile = [  # type: ignore[attr-defined]  # a TIFF has one for each strip
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other) for tile in tiles
    ]
    return image


def _of_eight_bits(values: np.ndarray, white: int, clear: Any = None) -> PIL.Image.Image:
    """Return values (h, w) or (h, w, 3) in 0..white as a picture of 8 bits a channel.

    Args:
        clear: the grey or the colour that is transparent, as a PNG names it with 16 bits; none for an opaque picture.
    """
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > white:
        raise ValueError(f"pixels must lie in 0..{white} (images.white), got {values.min()}..{values.max()}")
    picture = PIL.Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    if clear is not None:
        seen = (values.reshape(*values.shape[:2], -1) != clear).any(-1)
        picture.putalpha(PIL.Image.fromarray(np.where(seen, 255, 0).astype(np.uint8)))
    return picture


def _in_mode(image: PIL.Image.Image, channels: int, white: int = WHITE) -> PIL.Image.Image:
    """Return a picture as L, RGB or RGBA. Transparency is kept for four channels and laid on white for fewer."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save them as 8 or 16 bit")
    if image.mode.startswith("I"):  # PIL's own conversion clips 16 bits at 255
        image = _of_eight_bits(np.asarray(image), white, image.info.get("transparency"))
    if image.has_transparency_data and channels != 4:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    mode = MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _resized(pixels: Tensor, shape: Shape) -> Tensor:
    """Return pixels (C, h, w) resized to the shape.

    They are cropped first: a strip of 1 x 60,000 pixels would outgrow memory.
    """
    size = [shape.height, shape.width]
    if list(pixels.shape[1:]) == size:
        return pixels
    from torchvision.transforms.v2 import functional as transforms  # here: it takes a third of a command's start

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


def _pixels_of(image: PIL.Image.Image, shape: Shape) -> Tensor:
    """Return the pixels of a picture, (C, H, W) uint8."""
    read = np.array(_in_mode(image, shape.channels, shape.white))  # (h, w) or (h, w, C)
    pixels = torch.from_numpy(read).view(*read.shape[:2], shape.channels)
    pixels = _resized(pixels.permute(2, 0, 1), shape)
    return torch.where(pixels > 127, 255, 0).to(torch.uint8) if shape.binarize == "nearest" else pixels


def _brightest(image: PIL.Image.Image, colours: bool) -> int | None:
    """Return the largest value of a picture of 16 bits a channel, None for others.

    PIL decodes only the upper bytes of `colours`; for these it is the largest value they allow.
    """
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    if not colours or image.mode not in ("RGB", "RGBA"):
        return None
    return 256 * int(np.asarray(image)[..., :3].max()) + 255  # opacity apart


def decoded(file: bytes, shape: Shape, max_pixels: int) -> Decoded:
    """Return the pixels of a file, its number of frames and its brightest value. Raises whatever PIL raises."""
    with open_picture(file) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels are more than images.max_pixels {max_pixels}")
        frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        _refuse_planes(image, shape.white)
        raw, white_is_zero = _raw_mode(image), _white_is_zero(image)
        colours = ";16" in raw and not image.mode.startswith("I")
        clear = image.info.get("transparency")  # of 16 bits, which PIL compares with 8
        low = _low_bytes(file, raw) if colours and (shape.white < WHITE or clear is not None) else None
        PIL.ImageOps.exif_transpose(image, in_place=True)
        if white_is_zero:
            image = PIL.Image.fromarray(shape.white - np.asarray(image, np.int32))
        brightest = _brightest(image, colours)
        if low is not None:
            PIL.ImageOps.exif_transpose(low, in_place=True)
            values = np.asarray(image).astype(np.int64) * 256 + np.asarray(low)
            image = _of_eight_bits(values, shape.white, clear)
        return Decoded(_pixels_of(image, shape), frames, brightest)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8, rounded and clamped: the inverse of `to_float`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_pil(
    pictures: Sequence[PIL.Image.Image], size: tuple[int, int], channels: int, *, black_and_white: bool = False
) -> Tensor:
    """Return pictures of any size and mode as (B, C, H, W) uint8: turned as their EXIF says, cropped, resized."""
    shape = Shape(channels, *size, "crop", "nearest" if black_and_white else "none")
    return torch.stack([_pixels_of(PIL.ImageOps.exif_transpose(picture), shape) for picture in pictures])


def to_pil(images: Tensor) -> list[PIL.Image.Image]:
    """Return images (B, C, H, W) uint8 as L, RGB or RGBA pictures."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
