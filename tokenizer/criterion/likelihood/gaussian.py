"""`gaussian`: N(μ, σ²): the squared error, L2; the VQ-VAE's and the lecture's."""

import torch
from torch import Tensor

from smalti.tokenizer.criterion.likelihood.config import GaussianConfig
from smalti.tokenizer.criterion.likelihood.levels import log_normal_mass
from smalti.tokenizer.criterion.likelihood.location import Location


@GaussianConfig.register
class Gaussian(Location):
    """The Gaussian likelihood. A nat counts 2σ², the mean over channels, so that the gradient of a grey pixel is that
    of the squared error at every σ, and the balance with the codebook's losses that of eq. 3 of the VQ-VAE.

    The first and the last level hold the whole tail: a pure black or white pixel pulls its mean beyond the edge.
    """

    def __init__(self, config: GaussianConfig, channels: int):
        super().__init__(config.sigma, channels)

    def weight(self) -> Tensor:
        return 2 * (2 * self.log_scale.detach()).exp().mean()

    def log_mass(self, a: Tensor, b: Tensor) -> Tensor:
        return log_normal_mass(a, b)

    def mass_below(self, a: Tensor) -> Tensor:
        return torch.erfc(a * -(0.5**0.5)) / 2
