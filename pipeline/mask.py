"""The kept part of an image: from pixels to places of the grid.

Shapes: mask (B, H, W) bool, true where a pixel is kept; known (B, P) bool, the places of the grid whose pixels all are.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.errors import UserError
from smalti.common.layout import Layout


def read_mask(mask: Any, images: int, size: tuple[int, int]) -> Tensor:
    """Return an array or tensor of booleans, (H, W) for all images or (B, H, W), as (B, H, W).

    Raises:
        UserError: the mask has another type or shape.
    """
    H, W = size
    try:
        given = mask.cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    except (TypeError, ValueError):  # ragged lists, text, nothing
        raise UserError(
            f"the mask must be of booleans, true where a pixel is kept, ({H}, {W}) or ({images}, {H}, {W}), the "
            f"tokenizer's image size; got {type(mask).__name__}, of which no array can be made"
        ) from None
    if given.dtype != torch.bool or tuple(given.shape) not in ((H, W), (images, H, W)):
        raise UserError(
            f"the mask must be of booleans, true where a pixel is kept, ({H}, {W}) or ({images}, {H}, {W}), the "
            f"tokenizer's image size; got {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
        )
    return given.expand(images, H, W)


def known_places(mask: Tensor, layout: Layout) -> Tensor:
    """Return the known places (B, P) of masks (B, H, W).

    A place of the finest grid is known if all its pixels are kept, one of a coarser grid if all places of the next
    finer one that it lies over are.

    Raises:
        UserError: the places are not those of rows and columns of pixels.
    """
    known, unknown = list[Tensor](), 1 - mask[:, None].float()
    for grid in reversed(layout.grids):
        if len(grid.shape) != 2 or any(n < side for n, side in zip(unknown.shape[2:], grid.shape, strict=True)):
            raise UserError(f"parts of images are kept by their places, and no pixels belong to those of {layout}")
        # a pixel on the border of two places belongs to both, and so does a place on that of two coarser ones
        unknown = F.adaptive_max_pool2d(unknown, grid.shape)
        known.insert(0, 1 - unknown.flatten(1))
    return torch.cat(known, 1).bool()


def drawn_over(known: Tensor, layout: Layout) -> bool:
    """Return whether a place of known ones (B, P) lies under a place of a coarser grid that is not known.

    The picture of several grids is that of all of them, so that it is kept under a coarse place that is kept as well.
    """
    grids = layout.grids
    parts = known.split([grid.places for grid in grids], 1)
    each = [part.unflatten(1, grid.shape) for part, grid in zip(parts, grids, strict=True)]
    for finer, under in enumerate(each):
        for coarse in each[:finer]:
            over = F.interpolate((~coarse)[:, None].float(), under.shape[1:], mode="nearest")[:, 0].bool()
            if (over & under).any():
                return True
    return False


def fill_unknown(images: Tensor, mask: Tensor) -> Tensor:
    """Return images (B, C, H, W) in which the nearest kept pixel hides each pixel that is not kept."""
    from scipy.ndimage import distance_transform_edt  # half a second, which no command waits for that completes nothing

    filled = images.clone()
    for image, kept in zip(filled, mask.numpy(), strict=True):
        if not kept.any():
            image.zero_()
        elif not kept.all():
            rows, columns = distance_transform_edt(~kept, return_distances=False, return_indices=True)
            image.copy_(image[:, torch.from_numpy(rows), torch.from_numpy(columns)])
    return filled
