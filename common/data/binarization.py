"""Grey pixels as draws of black and white: a function of (row, epoch, pixel) alone.

A Bernoulli likelihood is one of black and white; given grey it is the log of no probability (Loaiza-Ganem and
Cunningham 2019). Salakhutdinov and Murray (2008) drew each pixel white with its grey as the probability, and papers on
binarized MNIST report nats of such draws: once for each image (fixed), or in each epoch anew (dynamic).

Shapes: B images, C channels, H x W pixels.
"""

import numpy as np
import torch
from torch import Tensor

from smalti.common.seeds import mixed


def binarized(images: Tensor, rows: Tensor, epochs: Tensor, how: str) -> Tensor:
    """Return images (B, C, H, W) uint8 with every pixel drawn 0 or 255 where `how` is fixed or dynamic.

    Args:
        rows: (B,), each image's place in its split. A fixed draw belongs to it.
        epochs: (B,), which a dynamic draw belongs to too. Held-out images are read with epoch 0.
    """
    if how not in ("fixed", "dynamic"):
        return images
    seen = np.zeros(len(rows), np.uint64) if how == "fixed" else epochs.numpy().astype(np.uint64)
    state = mixed(mixed(seen) ^ rows.numpy().astype(np.uint64))
    pixels = np.arange(images.shape[1:].numel(), dtype=np.uint64)
    drawn = (mixed(state[:, None] + pixels) >> np.uint64(11)).astype(np.float64) * (255 * 2.0**-53)
    return torch.where(torch.from_numpy(drawn).view(images.shape) < images, 255, 0).to(torch.uint8)
