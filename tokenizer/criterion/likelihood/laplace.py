"""`laplace`: Laplace(μ, b): the absolute error, L1."""

import torch
from torch import Tensor

from smalti.tokenizer.criterion.likelihood.config import LaplaceConfig
from smalti.tokenizer.criterion.likelihood.levels import log_laplace_mass
from smalti.tokenizer.criterion.likelihood.location import Location


@LaplaceConfig.register
class Laplace(Location):
    """The Laplace likelihood. A nat counts b: the gradient of the loss is the absolute error's."""

    def __init__(self, config: LaplaceConfig, channels: int):
        super().__init__(config.scale, channels)

    def weight(self) -> Tensor:
        return self.log_scale.detach().exp().mean()

    def log_mass(self, a: Tensor, b: Tensor) -> Tensor:
        return log_laplace_mass(a, b)

    def mass_below(self, a: Tensor) -> Tensor:
        tail = (-a.abs()).exp() / 2
        return torch.where(a < 0, tail, 1 - tail)
