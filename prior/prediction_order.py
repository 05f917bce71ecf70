"""The order in which the codes of an image are predicted.

P = h·w places of the grid, each of Q codes; T = P·Q. An order is places (B, P) int64, a permutation of 0, ..., P − 1
for each image. `code_order` turns it into an order of the codes, (B, T), in which the Q codes of a place stay side by
side, depth by depth.

The default is raster order. Any order, with positions that tell what is predicted next: Yu et al. 2024, Randomized
autoregressive visual generation, https://arxiv.org/abs/2411.00776.
"""

import torch
from torch import Tensor

from smalti.common.layout import Layout


def raster(images: int, places: int, device: torch.device) -> Tensor:
    """Return raster order, (B, P): row after row, from the left."""
    return torch.arange(places, device=device).expand(images, places)


def shuffled(
    images: int, places: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Return a random order for each image, (B, P); all orders are equally likely."""
    return torch.rand(images, places, generator=generator, device=device).argsort(dim=1)


def known_first(known: Tensor) -> Tensor:
    """Return the order (B, P) with the places known (B, P) bool first and then the others, both in raster order."""
    return known.logical_not().byte().argsort(dim=1, stable=True)


def code_order(order: Tensor, code_depth: int) -> Tensor:
    """Return the order of the codes, (B, T), for an order of the places, (B, P)."""
    return (order[:, :, None] * code_depth + torch.arange(code_depth, device=order.device)).flatten(1)


def draw_order(rows: int, layout: Layout, shuffled_share: float, device: torch.device) -> Tensor | None:
    """Return a random order for a share of the rows and raster order for the others, (b, T); None if the share is 0."""
    if shuffled_share == 0:
        return None
    places, chosen = raster(rows, layout.places, device), torch.rand(rows, 1, device=device) < shuffled_share
    return code_order(torch.where(chosen, shuffled(rows, layout.places, device=device), places), layout.depth)
