"""The contract of a network of a VAE: images to the numbers of a posterior, and vectors to what a likelihood reads.

Shapes: images (B, C, H, W); h (B, P, N), N numbers for each of P places; z (B, P, D); output (B, outputs, H, W). P is
h · w of the network's own grid, or 1 for a vector of the whole image.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from smalti.tokenizer.network.config import NetworkConfig


class Sizes(NamedTuple):
    """The sizes that a network does not decide."""

    image_channels: int
    image_size: tuple[int, int]
    whole: bool  # one vector for the whole image, not one at each place of the network's grid
    numbers: int  # N, of the posterior at a place
    dim: int  # D, of a vector
    outputs: int  # numbers a pixel that the likelihood reads


class Network(nn.Module, ABC):
    """An encoder and a decoder."""

    config_class: ClassVar[type[NetworkConfig]]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return h (B, P, N) of images (B, C, H, W)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the output (B, outputs, H, W) of vectors (B, P, D)."""


def build_network(config: NetworkConfig, sizes: Sizes) -> Network:
    """Return the network of a config, its weights drawn at random."""
    network: Network = config.builds(config, sizes)
    return network
