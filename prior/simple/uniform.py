"""The uniform distribution over codes as a prior: p(z) = K^−T, which a VQ-VAE is trained with.

It has no weights. What it draws shows what the decoder alone knows of images, and its ln K nats a code are what every
other prior is measured by. (Van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, sec. 3.2.)
"""

import math

import torch
from torch import Tensor

from smalti.prior.config import PriorConfig
from smalti.prior.simple.code_prior import CodePrior
from smalti.prior.simple.config import UniformConfig


@UniformConfig.register
class UniformPrior(CodePrior):
    """All codes are as likely as any other. It has no weights."""

    place: Tensor  # on the device of this prior, which has no weights

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        self.vocabularies = config.vocabularies  # a part of a uniform code is uniform
        self.register_buffer("place", torch.zeros(()), persistent=False)

    def logits(self, condition: Tensor, t: int, g: int) -> Tensor:
        return self.place.new_zeros(len(condition), self.vocabularies[g])

    def log_prob_each(self, codes: Tensor, condition: Tensor) -> Tensor:
        return torch.full_like(codes, -math.log(self.config.layout.codebook_size), dtype=torch.float64)
