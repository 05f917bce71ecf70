"""A network that reads the whole image as one vector of pixels, and has no grid. See `base.py` for the shapes."""

import torch
from torch import Tensor, nn

from smalti.tokenizer.network.base import Network


class WholeImageNetwork(Network):
    """An encoder of pixels and what is told, and a decoder of z and what is told, both (B, numbers) -> (B, numbers)."""

    encoder: nn.Module
    decoder: nn.Module
    shape: tuple[int, ...]  # (outputs, H, W)

    def encode(self, images: Tensor, told: Tensor) -> Tensor:
        h: Tensor = self.encoder(torch.cat([images.flatten(1), told], 1))
        return h[:, None]

    def decode(self, z: Tensor, told: Tensor) -> Tensor:
        output: Tensor = self.decoder(torch.cat([z.flatten(1), told], 1))
        return output.unflatten(1, self.shape)
