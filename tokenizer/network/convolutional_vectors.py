"""`convolutional`: the convolutional encoder and decoder of the VQ-VAE, for vectors on a grid or of the whole image.

Of the whole image, one linear layer leads from the lowest level's activations to the posterior's numbers, and one from
the vector back to as many.
"""

from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.tokenizer.network.base import Network, Sizes
from smalti.tokenizer.network.config import ConvolutionalConfig
from smalti.tokenizer.network.convolutional import ConvolutionalDecoder, ConvolutionalEncoder


@ConvolutionalConfig.register
class Convolutional(Network):
    """Convolutional encoder and decoder, for vectors on their grid or of the whole image."""

    def __init__(self, config: ConvolutionalConfig, sizes: Sizes):
        super().__init__()
        self.grid, last = config.grid(sizes.image_size), config.channels[-1]
        between = last * prod(self.grid)
        channels, vectors = (last, last) if sizes.whole else (sizes.numbers, sizes.dim)
        self.encoder = ConvolutionalEncoder(config, sizes.image_channels + sizes.told, channels)
        self.decoder = ConvolutionalDecoder(config, vectors + sizes.told, sizes.outputs)
        self.to_numbers = nn.Linear(between, sizes.numbers) if sizes.whole else None
        self.from_vector = nn.Linear(sizes.dim, between) if sizes.whole else None

    def encode(self, images: Tensor, told: Tensor) -> Tensor:
        y = self.encoder(everywhere(images, told))
        if self.to_numbers is None:
            return rearrange(y, "b n h w -> b (h w) n")
        h: Tensor = self.to_numbers(F.silu(y).flatten(1))
        return h[:, None]

    def decode(self, z: Tensor, told: Tensor) -> Tensor:
        h, w = self.grid
        if self.from_vector is not None:
            y = self.from_vector(z[:, 0]).unflatten(1, (-1, h, w))
        else:
            y = rearrange(z, "b (h w) d -> b d h w", h=h)
        output: Tensor = self.decoder(everywhere(y, told))
        return output


def everywhere(y: Tensor, told: Tensor) -> Tensor:
    """Return y (B, N, h, w) with the numbers of `told` (B, E) as channels more, the same at every place."""
    return torch.cat([y, told[:, :, None, None].expand(-1, -1, *y.shape[2:])], 1)
