"""The standard normal as a prior: p(z) = N(0, I), which the KL term of a VAE is about.

What its draws decode to shows how well the encoder's q(z | x) fill this p(z): where they leave holes, draws fall in.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from smalti.prior.config import PriorConfig
from smalti.prior.simple.base import VectorPrior
from smalti.prior.simple.config import StandardNormalConfig


@StandardNormalConfig.register
class StandardNormalPrior(VectorPrior):
    """N(0, I). It has no weights; `temperature` is its deviation."""

    place: Tensor  # on the device of this prior, which has no weights

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        self.register_buffer("place", torch.zeros(()), persistent=False)

    def numbers(self, latents: Tensor, condition: Tensor) -> Tensor:
        return -0.5 * (latents.double().square() + math.log(2 * math.pi))

    def log_prob_around(self, latents: Tensor, condition: Tensor, numbers: Tensor) -> Tensor:
        return self.numbers(latents, condition)[:, ~numbers].sum(1)

    def drawer(self, condition: int, numbers: Tensor, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda normal, given: temperature * normal[1:]
