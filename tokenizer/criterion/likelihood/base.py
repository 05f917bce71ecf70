"""What every likelihood gives of what a decoder says: probabilities, the mean picture, draws.

Shapes: output (B, P, H, W), images (B, C, H, W) of the 256 levels in [-1, 1].
"""

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.criterion.likelihood.config import LikelihoodConfig
from smalti.tokenizer.criterion.likelihood.levels import LEVELS, pixels_of


class Likelihood(nn.Module):
    """p(x | z), z being behind `output`. fp32 inside, fp64 where the output is; under autocast too."""

    config_class: ClassVar[type[LikelihoodConfig]]

    @property
    def kind(self) -> str:
        """Return its name in the settings."""
        return self.config_class.name()

    def weight(self) -> Tensor | float:
        """What a nat of a pixel counts in the loss beside the codebook's terms: constant to the gradient."""
        return 1.0

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """log p of every pixel, its channels summed: (B, H, W), in nats."""
        raise NotImplementedError

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """−log p(x | z) of each image: (B,), in nats."""
        with torch.autocast(output.device.type, enabled=False):
            return -self.log_prob(fp32(output), images.to(fp32(output).dtype)).sum((1, 2))

    def mean(self, output: Tensor) -> Tensor:
        """E[x | z], the picture of the least squared error: (B, C, H, W) in [-1, 1]. What decoding shows."""
        raise NotImplementedError

    def mode(self, output: Tensor) -> Tensor:
        """A likeliest picture: (B, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        """Of each level of a channel, given the channels of `images` before it: (B, H, W, 256)."""
        raise NotImplementedError

    def sample(self, output: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw from p(x | z), every pixel on its own: (B, C, H, W) of the 256 levels."""
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
