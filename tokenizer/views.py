"""Views of an image, cropped and mirrored: a function of (seed, epoch, row) and nothing else.

Shapes: B images, C channels, H x W pixels wanted; H' = H + margin, W' = W + margin pixels read.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.config import ImagesConfig


def mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014): uint64 to uint64, each bit depending on all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniforms(seed: int, epochs: np.ndarray, rows: np.ndarray, count: int) -> Tensor:
    """(count, B) in [0, 1), a function of seed, epoch, row and nothing else."""
    state = mixed(np.full(rows.shape, seed % 2**64, dtype=np.uint64))
    state = mixed(mixed(state ^ epochs.astype(np.uint64)) ^ rows.astype(np.uint64))
    drawn = np.stack([mixed(state + np.uint64(i)) >> np.uint64(11) for i in range(count)])
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
