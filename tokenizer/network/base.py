"""The contract of a network of a VAE: images to the numbers of a posterior, and vectors to what a likelihood reads.

Shapes: images (B, C, H, W); h (B, P, N), N numbers for each of P places; z (B, P, D); output (B, outputs, H, W); told
(B, E), a vector that says the class, E = 0 where nothing is told. P is h · w of the network's own grid, or 1 for a
vector of the whole image.

`told` is concatenated to what encoder and decoder read, at every place: Kingma et al. (2014, model M2),
https://arxiv.org/abs/1406.5298, and Sohn et al. (2015), https://papers.nips.cc/paper/5775.
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
    told: int = 0  # E, numbers of the vector that says the class


class Network(nn.Module, ABC):
    """An encoder and a decoder."""

    config_class: ClassVar[type[NetworkConfig]]
    decoder: nn.Module

    @abstractmethod
    def encode(self, images: Tensor, told: Tensor) -> Tensor:
        """Return h (B, P, N) of images (B, C, H, W) of which (B, E) is told."""

    @abstractmethod
    def decode(self, z: Tensor, told: Tensor) -> Tensor:
        """Return the output (B, outputs, H, W) of vectors (B, P, D) of which (B, E) is told."""


def build_network(config: NetworkConfig, sizes: Sizes) -> Network:
    """Return the network of a config, its weights drawn at random."""
    network: Network = config.builds(config, sizes)
    return network
