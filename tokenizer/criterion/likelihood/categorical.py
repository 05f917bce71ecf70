"""`categorical`: 256 numbers a pixel: any shape, and no notion that neighbouring levels are alike."""

import torch
from einops import rearrange
from torch import Tensor

from smalti.common.precision import fp32
from smalti.tokenizer.criterion.likelihood.base import Likelihood
from smalti.tokenizer.criterion.likelihood.config import LEVELS, CategoricalConfig
from smalti.tokenizer.criterion.likelihood.levels import all_levels, levels_of, pixels_of


@CategoricalConfig.register
class Categorical(Likelihood):
    """The categorical likelihood; the output is 256 logits for each channel."""

    NAT = 0.1  # as of the mixture

    def __init__(self, config: CategoricalConfig, channels: int):
        super().__init__()

    def weight(self) -> float:
        return self.NAT

    def _log_p(self, output: Tensor) -> Tensor:
        """Return log p of each level, (B, 256, C, H, W)."""
        return rearrange(fp32(output), "b (c n) h w -> b n c h w", n=LEVELS).log_softmax(1)

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        return self._log_p(output).gather(1, levels_of(images)[:, None]).sum((1, 2))

    def mean(self, output: Tensor) -> Tensor:
        return torch.einsum("bnchw,n->bchw", self._log_p(output).exp(), all_levels(fp32(output)))

    def mode(self, output: Tensor) -> Tensor:
        return pixels_of(self._log_p(output).argmax(1), fp32(output).dtype)

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        return rearrange(self._log_p(output)[:, :, channel], "b n h w -> b h w n").exp()
