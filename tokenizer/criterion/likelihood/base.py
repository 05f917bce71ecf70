"""The contract of every likelihood: probabilities, the mean image, and draws, from the output of a decoder.

Shapes: output (B, P, H, W), images (B, C, H, W) of the 256 levels in [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.criterion.likelihood.config import LEVELS, LikelihoodConfig
from smalti.tokenizer.criterion.likelihood.levels import pixels_of

Below = Callable[[Tensor], Tensor]  # levels (B, H, W, n) in [1, 255] -> P(a pixel's level is below each), of that shape


class Likelihood(nn.Module, ABC):
    """p(x | z), given the decoder's `output` for z. Computed in fp32, or fp64 if the output is, also under autocast."""

    config_class: ClassVar[type[LikelihoodConfig]]

    @property
    def kind(self) -> str:
        """Return its name in the settings."""
        return self.config_class.name()

    def weight(self) -> Tensor | float:
        """Return the weight of a nat of a pixel in the loss beside the codebook's terms; it has no gradient."""
        return 1.0

    @abstractmethod
    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """Return log p of every pixel, its channels summed: (B, H, W), in nats."""

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """Return −log p(x | z) of each image: (B,), in nats."""
        with torch.autocast(output.device.type, enabled=False):
            return -self.log_prob(fp32(output), images.to(fp32(output).dtype)).sum((1, 2))

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return E[x | z], the image of least squared error, which decoding shows: (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def mode(self, output: Tensor) -> Tensor:
        """Return a likeliest image: (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        """Return p of each level of a channel, given the channels of `images` before it: (B, H, W, 256)."""

    def below(self, output: Tensor, images: Tensor, channel: int) -> Below:
        """Return the distribution function of a channel's levels, given the channels of `images` before it.

        A coder asks it for a few levels of each pixel. Kinds whose `probabilities` take long have a formula for it.
        """
        table = F.pad(self.probabilities(output, images, channel).cumsum(-1), (1, 0))
        return lambda levels: table.gather(-1, levels)

    def sample(self, output: Tensor, generator: Generator | None = None) -> Tensor:
        """Return a draw from p(x | z), every pixel on its own: (B, C, H, W) of the 256 levels."""
        images = torch.zeros_like(self.mean(output))
        for channel in range(images.shape[1]):
            cumulative = self.probabilities(output, images, channel).cumsum(-1)
            uniform = torch.rand(
                cumulative.shape[:-1], generator=generator, device=cumulative.device, dtype=cumulative.dtype
            )
            drawn = torch.searchsorted(cumulative, (uniform * cumulative[..., -1])[..., None], right=True)[..., 0]
            images[:, channel] = pixels_of(drawn.clamp_max(LEVELS - 1), images.dtype)
        return images


def build_likelihood(config: LikelihoodConfig, channels: int) -> Likelihood:
    """Return the likelihood of a config, for images of so many channels."""
    likelihood: Likelihood = config.builds(config, channels)
    return likelihood
