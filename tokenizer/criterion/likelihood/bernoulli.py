"""`bernoulli`: the probability of white: cross-entropy, for black-and-white images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.precision import fp32
from smalti.tokenizer.criterion.likelihood.base import Likelihood
from smalti.tokenizer.criterion.likelihood.config import LEVELS, BernoulliConfig
from smalti.tokenizer.criterion.likelihood.levels import HALF


@BernoulliConfig.register
class Bernoulli(Likelihood):
    """The likelihood of black-and-white images: the output is the log-odds of white, other levels have p = 0."""

    def __init__(self, config: BernoulliConfig, channels: int):
        super().__init__()

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        log_p = torch.where(images > 0, F.logsigmoid(output), F.logsigmoid(-output))
        return torch.where(images.abs() > 1 - HALF, log_p, -torch.inf).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return 2 * torch.sigmoid(fp32(output)) - 1

    def mode(self, output: Tensor) -> Tensor:
        return torch.where(output > 0, 1.0, -1.0)

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        white = torch.sigmoid(fp32(output)[:, channel])
        between = white.new_zeros(*white.shape, LEVELS - 2)
        return torch.cat([1 - white[..., None], between, white[..., None]], dim=-1)
