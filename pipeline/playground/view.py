"""One picture seen through the tokenizer, and what its codes cost.

Shapes: images (1, C, H, W) uint8; codes (1, T).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.metrics.similarity import psnr_each
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Scores

CONTRAST = 4  # factor of the differences


class View(NamedTuple):
    """A picture, its codes, its reconstruction, and the figures of both."""

    image: Tensor  # (1, C, H, W), the picture as the tokenizer sees it
    codes: Tensor  # (1, T)
    again: Tensor  # (1, C, H, W), what the codes decode to
    psnr: float  # dB
    evenly: float | None  # bits of the codes if all were equally likely; None for vectors
    bits: float | None  # bits of the codes under the prior; None if it gives no likelihood
    exact: bool  # false where they are a bound
    raw: int  # bits of the pixels


def view_picture(pipeline: ImagePipeline, image: Tensor, label: int | None) -> View:
    """Encode and decode a picture; tokenizer and prior are given the label if there is one."""
    told = None if label is None else torch.tensor([label])
    codes = pipeline.encode_pixels(image, told)
    again = pipeline.decode(codes, told)
    names = pipeline.condition.class_names
    layout, bits, exact = pipeline.tokenizer.config.layout, None, False
    if pipeline.prior.config.layout.discrete and isinstance(pipeline.prior, Scores):
        found = pipeline.log_prob(codes, labels=label if label is None or names is None else names[label])
        bits = None if found.bits is None else -found.bits.item()
        exact = pipeline.prior.exact
    evenly = layout.length * math.log2(layout.codebook_size) if layout.discrete else None
    return View(image, codes, again, psnr_each(image, again).item(), evenly, bits, exact, 8 * image.numel())


def difference(image: Tensor, again: Tensor) -> Tensor:
    """Return a reconstruction's error times `CONTRAST`, around grey 128; lighter is too light. RGBA is on white."""
    if image.shape[1] == 4:
        image, again = (_on_white(each) for each in (image, again))
    return (128 + CONTRAST * (again.int() - image.int())).clamp(0, 255).to(torch.uint8)


def _on_white(images: Tensor) -> Tensor:
    """Return RGBA images on a white ground."""
    opacity = images[:, 3:].float() / 255
    return (images[:, :3] * opacity + 255 * (1 - opacity)).round().to(torch.uint8)
