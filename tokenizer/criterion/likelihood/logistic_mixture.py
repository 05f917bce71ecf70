"""`logistic_mixture`: Σ_k π_k Logistic(μ_k, s_k): each pixel has a spread, later channels depend on earlier ones."""

import torch
from einops import rearrange
from torch import Tensor

from smalti.common.precision import fp32
from smalti.tokenizer.criterion.likelihood.base import Below, Likelihood
from smalti.tokenizer.criterion.likelihood.config import LogisticMixtureConfig
from smalti.tokenizer.criterion.likelihood.levels import (
    HALF,
    all_levels,
    edges,
    levels_of,
    log_logistic_mass,
    pixels_of,
)


@LogisticMixtureConfig.register
class LogisticMixture(Likelihood):
    """p(x_1, ..., x_C) = Σ_k π_k Π_c Logistic(x_c; μ_kc + Σ_{d<c} α_kcd x_d, s_kc).

    A component is a colour with its spread; the mean of a later channel moves with the earlier ones (PixelCNN++, sec.
    2.2).
    """

    NAT = 0.1  # as much of a nat as keeps the codebook's losses in balance: of the size of the squared error's gradient
    LEAST, MOST = -7.0, 3.0  # of log s: an eighth of a level, and ten times the range

    start: Tensor  # (M,), where the components are while the output is 0

    def __init__(self, config: LogisticMixtureConfig, channels: int):
        super().__init__()
        self.components, self.channels = config.components, channels
        spread = torch.linspace(-1, 1, 2 * config.components + 1)[1::2]
        self.register_buffer("start", spread, persistent=False)

    def weight(self) -> float:
        return self.NAT

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log π (B, M, H, W); μ and log s (B, M, C, H, W); α (B, M, C (C − 1) / 2, H, W)."""
        M, C = self.components, self.channels
        parts = rearrange(fp32(output), "b (m p) h w -> b m p h w", m=M)
        logits, means, log_scales, alphas = parts.split([1, C, C, C * (C - 1) // 2], dim=2)
        means = means + self.start.to(means.dtype)[:, None, None, None]
        return logits[:, :, 0].log_softmax(1), means, (log_scales - 2).clamp(self.LEAST, self.MOST), alphas.tanh()

    def _moved(self, means: Tensor, alphas: Tensor, channel: int, before: Tensor) -> Tensor:
        """Return μ_kc of a channel, given the channels `before` (B, 1 or M, c, H, W): (B, M, H, W)."""
        first = channel * (channel - 1) // 2
        return means[:, :, channel] + (alphas[:, :, first : first + channel] * before).sum(2)

    def _log_joint(self, output: Tensor, images: Tensor, channels: int) -> Tensor:
        """Return log π_k + log p of the first channels, of each component: (B, M, H, W)."""
        log_pi, means, log_scales, alphas = self._parts(output)
        for c in range(channels):
            mean = self._moved(means, alphas, c, images[:, None, :c])
            log_pi = log_pi + log_logistic_mass(*edges(images[:, None, c], mean, log_scales[:, :, c]))
        return log_pi

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        return self._log_joint(output, images, self.channels).logsumexp(1)

    def _centres(self, output: Tensor) -> Tensor:
        """Return each component's own colour: (B, M, C, H, W) in [-1, 1]."""
        _, means, _, alphas = self._parts(output)
        centres = means[:, :, :0]
        for c in range(self.channels):
            centres = torch.cat([centres, self._moved(means, alphas, c, centres).clamp(-1, 1)[:, :, None]], dim=2)
        return centres

    def mean(self, output: Tensor) -> Tensor:
        return (self._parts(output)[0].exp()[:, :, None] * self._centres(output)).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return the likeliest of the components' colours, pixel by pixel."""
        centres = pixels_of(levels_of(self._centres(output)), fp32(output).dtype)
        likelihoods = torch.stack([self.log_prob(output, centre) for centre in centres.unbind(1)], dim=1)
        best = likelihoods.argmax(1)[:, None, None].expand(-1, 1, self.channels, -1, -1)
        return centres.gather(1, best)[:, 0]

    def _components(self, output: Tensor, images: Tensor, channel: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log π given the channels before, μ and log s of a channel, each (B, M, H, W, 1)."""
        images = images.to(fp32(output).dtype)
        log_weights = self._log_joint(output, images, channel).log_softmax(1)
        _, means, log_scales, alphas = self._parts(output)
        mean = self._moved(means, alphas, channel, images[:, None, :channel])
        return log_weights[..., None], mean[..., None], log_scales[:, :, channel, ..., None]

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        log_weights, mean, log_scale = self._components(output, images, channel)
        mass = log_logistic_mass(*edges(all_levels(mean), mean, log_scale))
        return (log_weights + mass).exp().sum(1)

    def below(self, output: Tensor, images: Tensor, channel: int) -> Below:
        log_weights, mean, log_scale = self._components(output, images, channel)
        weights, inverse = log_weights.exp(), (-log_scale).exp()

        def mass_below(levels: Tensor) -> Tensor:
            ends = pixels_of(levels, mean.dtype)[:, None] - HALF  # (B, 1, H, W, n)
            return (weights * ((ends - mean) * inverse).sigmoid()).sum(1)

        return mass_below
