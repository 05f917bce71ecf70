"""`linear`: one linear layer each way. A VAE with it and a Gaussian likelihood is probabilistic PCA.

Tipping and Bishop (1999), https://doi.org/10.1111/1467-9868.00196. Its posterior is known exactly
(`tokenizer/vae/linear.py`), so that what an encoder and a bound lose can be seen.
"""

from math import prod

from torch import nn

from smalti.tokenizer.network.base import Sizes
from smalti.tokenizer.network.config import LinearConfig
from smalti.tokenizer.network.whole_image import WholeImageNetwork


@LinearConfig.register
class LinearNetwork(WholeImageNetwork):
    """Linear encoder and decoder."""

    encoder: nn.Linear
    decoder: nn.Linear

    def __init__(self, config: LinearConfig, sizes: Sizes):
        super().__init__()
        self.shape = (sizes.outputs, *sizes.image_size)
        self.encoder = nn.Linear(sizes.image_channels * prod(sizes.image_size) + sizes.told, sizes.numbers)
        self.decoder = nn.Linear(sizes.dim + sizes.told, prod(self.shape))
