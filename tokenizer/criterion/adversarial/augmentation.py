"""Differentiable augmentation of what a discriminator sees, images and reconstructions alike.

Zhao et al. (2020), https://arxiv.org/abs/2006.10738: the same random functions for both, with a gradient to the
reconstruction, so that a discriminator of few images has no others to learn by heart. An image and its reconstruction
go through the same draw, which belongs to seed, step and row, whatever the process.

Shapes: pixels (B, C, H, W) in [-1, 1]; draws (DRAWS, B) in [0, 1).
"""

from collections.abc import Collection

import torch
from torch import Tensor

DRAWS = 7
MOVED = 1 / 8  # of a side, at most
CUT = 1 / 2  # of a side


def augmented(pixels: Tensor, draws: Tensor, which: Collection[str]) -> Tensor:
    """Return pixels after the augmentations of `which`: colour, translation, cutout, in this order."""
    down, right, light, saturation, contrast, top, left = draws.to(pixels.device, pixels.dtype)
    if "colour" in which:
        pixels = recoloured(pixels, light, saturation, contrast)
    if "translation" in which:
        pixels = translated(pixels, down, right)
    if "cutout" in which:
        pixels = cut_out(pixels, top, left)
    return pixels


def recoloured(pixels: Tensor, light: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Return pixels made lighter by -1/2 to 1/2, of 0 to 2 times the saturation and 1/2 to 3/2 of the contrast."""
    light, saturation, contrast = (each.view(-1, 1, 1, 1) for each in (light, saturation, contrast))
    colour, opacity = pixels[:, :3], pixels[:, 3:]
    colour = colour + (light - 0.5)
    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * (2 * saturation)
    mean = colour.mean((1, 2, 3), keepdim=True)
    return torch.cat([mean + (colour - mean) * (contrast + 0.5), opacity], 1)


def translated(pixels: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return pixels moved by up to `MOVED` of a side; what comes in repeats that side's own row or column."""
    B, C, H, W = pixels.shape
    y = _places(H, down, pixels.device)  # (B, H)
    x = _places(W, right, pixels.device)
    places = (y[:, :, None] * W + x[:, None, :]).view(B, 1, H * W)
    return pixels.flatten(2).gather(2, places.expand(B, C, H * W)).view(B, C, H, W)


def _places(side: int, draw: Tensor, device: torch.device) -> Tensor:
    most = int(side * MOVED)
    moved = (draw * (2 * most + 1)).long() - most
    return (moved[:, None] + torch.arange(side, device=device)).clamp(0, side - 1)


def cut_out(pixels: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return pixels with a rectangle of grey, `CUT` of each side, whose centre is anywhere in the image."""
    H, W = pixels.shape[2:]
    rows, columns = (_cut(side, draw, pixels.device) for side, draw in ((H, top), (W, left)))
    return pixels.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _cut(side: int, draw: Tensor, device: torch.device) -> Tensor:
    """Return whether each row or column (B, side) is cut."""
    return (torch.arange(side, device=device) - (draw * side).floor()[:, None]).abs() < side * CUT / 2
