"""`none`: z is the encoder's output; the autoencoder, which the others are compared with.

There is no density, so no log q and no KL: nothing asks z to be near N(0, I).
"""

import torch
from torch import Generator, Tensor

from smalti.common.errors import UserError
from smalti.tokenizer.posterior.base import Draw, Posterior, in_fp32
from smalti.tokenizer.posterior.config import NoneConfig


@NoneConfig.register
class NonePosterior(Posterior):
    """The posterior of an autoencoder: all of it at h. Its draws are all the same."""

    @in_fp32
    def draw(self, h: Tensor, samples: int = 1, generator: Generator | None = None) -> Draw:
        return Draw(h.expand(samples, *h.shape), None)

    def log_prob(self, h: Tensor, z: Tensor) -> Tensor:
        raise UserError("posterior `none` has no density, so no log q(z | x); take `gaussian`, `mixture` or `flow`")

    @in_fp32
    def center(self, h: Tensor) -> Tensor:
        return h

    @in_fp32
    def deviation(self, h: Tensor) -> Tensor:
        return torch.zeros_like(h)
