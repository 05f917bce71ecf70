"""Views of an image, shifted and mirrored: a function of (seed, epoch, row) alone.

Shapes: B images, C channels, H x W pixels.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.common.data.config import ImagesConfig
from smalti.common.seeds import uniforms_of_rows

ROWS = 20_000  # that codes of a small train set shall have: see `default_views`
MOST_VIEWS = 8


def augment(images: Tensor, seed: int, rows: Any, epochs: Any, config: ImagesConfig) -> Tensor:
    """Return the images (B, C, H, W) moved by up to `shift` pixels on either axis, half of them mirrored where `flip`.

    What comes in at a side is that side's own row or column, repeated. Zeros would be a frame that no image has, and
    the other side's pixels an edge where there is none; a background goes on as it is. Nothing is resampled.
    """
    if not (config.shift or config.flip):
        return images
    B, C, H, W = images.shape
    rows = np.asarray(rows, dtype=np.int64)
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), rows.shape)
    down, right, mirror = uniforms_of_rows(seed, epochs, rows, 3)[..., None]  # (B, 1) each
    ways = 2 * config.shift + 1
    y = ((down * ways).long() - config.shift + torch.arange(H)).clamp(0, H - 1)  # (B, H)
    x = ((right * ways).long() - config.shift + torch.arange(W)).clamp(0, W - 1)  # (B, W)
    if config.flip:
        x = torch.where(mirror < 0.5, x.flip(1), x)
    places = (y[:, :, None] * W + x[:, None, :]).view(B, 1, H * W).to(images.device)
    return images.flatten(2).gather(2, places.expand(B, C, H * W)).view(B, C, H, W)  # 4 to 20 times indexing's speed


def image_view(images: Tensor, seed: int, rows: Any, index: int, config: ImagesConfig) -> Tensor:
    """Return a view, (B, C, H, W): 0 the images, 1 their mirror (if `flip`), a further one an augmentation."""
    if index == 0:
        return images
    if index == 1 and config.flip:
        return images.flip(-1)
    return augment(images, seed, rows, index, config)


def image_views(images: Tensor, seed: int, rows: np.ndarray, which: np.ndarray, config: ImagesConfig) -> Tensor:
    """Return one view of each image (B, C, H, W): that of the index (B,) which it is given."""
    found = images.clone()
    for index in np.unique(which):
        some = np.flatnonzero(which == index)
        found[some] = image_view(images[some], seed, rows[some], int(index), config)
    return found


def different_views(config: ImagesConfig) -> int:
    """Return how many views of an image differ."""
    return (1 + config.flip) * (2 * config.shift + 1) ** 2


def default_views(images: int, config: ImagesConfig) -> int:
    """Return how many views of an image a train set of that many images gets.

    A model memorises few rows, so a small set gets views until it has `ROWS`, up to `MOST_VIEWS` an image. A
    large set gets none: each view costs as much encoding as all the images do. The mirror alone always pays: it is as
    new as an image.
    """
    wanted = max(1 + config.flip, -(-ROWS // max(1, images)))
    return min(wanted, MOST_VIEWS, different_views(config))
