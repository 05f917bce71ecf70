"""`linear`: one linear layer each way. A VAE with it and a Gaussian likelihood is probabilistic PCA.

Tipping and Bishop (1999), https://doi.org/10.1111/1467-9868.00196. Its posterior is known exactly
(`tokenizer/vae/linear.py`), so that what an encoder and a bound lose can be seen.
"""

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from smalti.tokenizer.network.base import Network, Sizes
from smalti.tokenizer.network.config import NetworkConfig


class LinearConfig(NetworkConfig):
    """One linear layer each way, with a posterior that is known exactly: probabilistic PCA."""

    kind: Literal["linear"] = "linear"
    """one linear layer each way, of the whole image: probabilistic PCA"""

    def grid(self, image_size: tuple[int, int]) -> None:
        return None


@LinearConfig.register
class LinearNetwork(Network):
    """Linear encoder and decoder."""

    def __init__(self, config: LinearConfig, sizes: Sizes):
        super().__init__()
        self.shape = (sizes.outputs, *sizes.image_size)
        self.encoder = nn.Linear(sizes.image_channels * prod(sizes.image_size) + sizes.told, sizes.numbers)
        self.decoder = nn.Linear(sizes.dim + sizes.told, prod(self.shape))

    def encode(self, images: Tensor, told: Tensor) -> Tensor:
        h: Tensor = self.encoder(torch.cat([images.flatten(1), told], 1))
        return h[:, None]

    def decode(self, z: Tensor, told: Tensor) -> Tensor:
        output: Tensor = self.decoder(torch.cat([z.flatten(1), told], 1))
        return output.unflatten(1, self.shape)
