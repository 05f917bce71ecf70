"""`mlp`: fully connected layers with tanh, the small network of the first VAE papers for 28 x 28 pixels.

Kingma and Welling (2014), https://arxiv.org/abs/1312.6114, app. C; Burda et al. (2016), https://arxiv.org/abs/1509.00519.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from smalti.tokenizer.network.base import Sizes
from smalti.tokenizer.network.config import MLPConfig
from smalti.tokenizer.network.whole_image import WholeImageNetwork


@MLPConfig.register
class MLP(WholeImageNetwork):
    """Fully connected encoder and decoder."""

    def __init__(self, config: MLPConfig, sizes: Sizes):
        super().__init__()
        self.shape = (sizes.outputs, *sizes.image_size)
        pixels = sizes.image_channels * prod(sizes.image_size)
        self.encoder = layers([pixels + sizes.told, *config.hidden, sizes.numbers])
        self.decoder = layers([sizes.dim + sizes.told, *reversed(config.hidden), prod(self.shape)])


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers between these widths, with tanh after all but the last."""
    found: list[nn.Module] = []
    for before, after in pairwise(widths):
        found += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*found[:-1])
