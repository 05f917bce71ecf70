"""What a tokenizer makes of one picture, and what that costs.

Shapes: images (1, C, H, W) uint8; codes (1, T).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.metrics.similarity import psnr_each
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Scores

CONTRAST = 4  # by which differences are raised


class View(NamedTuple):
    image: Tensor  # (1, C, H, W), the picture as the tokenizer sees it
    codes: Tensor  # (1, T)
    again: Tensor  # (1, C, H, W), what the codes decode to
    psnr: float  # dB
    evenly: float | None  # bits of the codes if all were alike likely, where there are codes
    bits: float | None  # of the codes as the prior thinks of them, where it says so
    raw: int  # of the pixels as they are


def view(pipeline: ImagePipeline, image: Tensor, label: int | None) -> View:
    """Encode and decode; the prior is told the label where there is one."""
    codes = pipeline.encode_pixels(image)
    again = pipeline.decode(codes)
    names = pipeline.prior.config.condition.class_names
    layout, bits = pipeline.tokenizer.config.layout, None
    if layout.discrete and isinstance(pipeline.prior, Scores):
        bits = -pipeline.log_prob(codes, labels=label if label is None or names is None else names[label]).bits.item()
    evenly = layout.length * math.log2(layout.codebook_size) if layout.discrete else None
    return View(image, codes, again, psnr_each(image, again).item(), evenly, bits, 8 * image.numel())


def difference(image: Tensor, again: Tensor) -> Tensor:
    """What the codes get wrong, `CONTRAST`-fold: grey 128 where nothing, lighter where they are too light. Of RGBA as
    on white."""
    if image.shape[1] == 4:
        image, again = (_on_white(each) for each in (image, again))
    return (128 + CONTRAST * (again.int() - image.int())).clamp(0, 255).to(torch.uint8)


def _on_white(images: Tensor) -> Tensor:
    opacity = images[:, 3:].float() / 255
    return (images[:, :3] * opacity + 255 * (1 - opacity)).round().to(torch.uint8)
