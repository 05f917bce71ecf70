"""Pictures of a run for people: grids of images, and curves of its metrics."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from smalti.common.errors import UserError
from smalti.common.folder import replacing

ACROSS = 4  # panels of curves in a row


def image_grid(images: Tensor, columns: int, *, side: int = 64) -> Image.Image:
    """Return images (N, C, H, W) uint8 as one picture, row by row; enlarge small ones to about `side`, pixels kept."""
    N, C, H, W = images.shape
    scale, gap = max(1, side // max(H, W)), 2
    rows = -(-N // columns)
    tiles = images.new_full((rows * columns, C, H + gap, W + gap), 255)
    tiles[:N, :, :H, :W] = images
    pixels = rearrange(tiles, "(r c) ch h w -> (r h) (c w) ch", r=rows).numpy()[:-gap, :-gap]
    picture = Image.fromarray(pixels[..., 0] if C == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def make_grid(images: Any, columns: int | None = None) -> Image.Image:
    """Return pictures of one size side by side as one, small ones enlarged.

    Args:
        images: as a pipeline returns them: PIL pictures, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].
        columns: about square when not given.
    Raises:
        UserError: no picture, or pictures of several sizes or modes.
    """
    if isinstance(images, Tensor | np.ndarray):
        given = torch.as_tensor(images)
        pixels = given if isinstance(images, Tensor) else given.permute(0, 3, 1, 2)
        pixels = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
    else:
        kinds = {(image.size, image.mode) for image in images}
        if len(kinds) != 1:
            raise UserError(f"a grid is of at least one picture, all of one size and mode, got {sorted(kinds)}")
        pixels = torch.from_numpy(np.stack([np.atleast_3d(np.asarray(image)) for image in images])).permute(0, 3, 1, 2)
    if columns is not None and columns < 1:
        raise UserError(f"columns must be at least 1, got {columns}")
    return image_grid(pixels, columns or math.ceil(len(pixels) ** 0.5))


def save_picture(picture: Image.Image, path: Path) -> None:
    with replacing(path) as aside:
        picture.save(aside, format="PNG")


def save_curves(
    metrics: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    path: Path,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Save one panel a title, `ACROSS` in a row, each of the named metrics over the step; `levels` are dashed lines."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    columns, rows = min(ACROSS, len(panels)), -(-len(panels) // ACROSS)
    width, height = 4.5 * columns, 3.2 * rows
    figure = Figure(figsize=(width, height))
    # To lay it out by the sizes of its texts would take as long as to draw it.
    sides = {"left": 0.7 / width, "right": 1 - 0.15 / width, "bottom": 0.48 / height, "top": 1 - 0.32 / height}
    figure.subplots_adjust(**sides, wspace=0.22, hspace=0.34)
    for place, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in names:
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=name.replace("_", " "), marker="." if len(points) < 30 else ""
                )
        for (name, level), grey in zip((levels or {}).items(), ("0.3", "0.6"), strict=False):
            axes.axhline(level, linestyle="--", color=grey, label=name)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
