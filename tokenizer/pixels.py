"""Pictures to pixels and back.

    an encoded file | a PIL picture  ->  (C, H, W) uint8  ->  to_float  ->  [-1, 1]

PIL decodes: torchvision.io ends the process on some damaged files. Shapes: B images, C channels (1, 3 or 4), H x W pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from common.raster import open_picture

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of a picture, by its channels
ANIMATED = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}  # not MPO: a phone's JPEG with its preview is no animation


class Shape(NamedTuple):
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
    mode = MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _resized(pixels: Tensor, shape: Shape) -> Tensor:
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


def _pixels_of(image: PIL.Image.Image, shape: Shape) -> Tensor:
    """(C, H', W') uint8."""
    read = np.array(_in_mode(image, shape.channels))  # (h, w) or (h, w, C)
    pixels = torch.from_numpy(read).view(*read.shape[:2], shape.channels)
    pixels = _resized(pixels.permute(2, 0, 1), shape)
    return torch.where(pixels > 127, 255, 0).to(torch.uint8) if shape.black_and_white else pixels


def decoded(file: bytes, shape: Shape, max_pixels: int) -> tuple[Tensor, int]:
    """(C, H', W') uint8, and how many frames the file has. Raises whatever PIL raises."""
    with open_picture(file) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels are more than images.max_pixels {max_pixels}")
        frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        PIL.ImageOps.exif_transpose(image, in_place=True)
        return _pixels_of(image, shape), frames


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
    shape = Shape(channels, *size, "crop", black_and_white)
    return torch.stack([_pixels_of(PIL.ImageOps.exif_transpose(picture), shape) for picture in pictures])


def to_pil(images: Tensor) -> list[PIL.Image.Image]:
    """images (B, C, H, W) uint8 as L, RGB or RGBA pictures."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
