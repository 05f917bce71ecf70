"""What the decoder says of the pixels: p(x | z), a distribution over 8-bit images, and so the reconstruction term in nats.

Shapes: images (B, C, H, W) in [-1, 1], of the 256 levels n / 127.5 − 1; output (B, P, H, W), what the decoder gives, P numbers
a pixel; probabilities (B, H, W, 256) of one channel.

Every likelihood sums to one over the levels, so that −log2 p(x | z) is a number of bits. Where the lecture has a density p(x),
a level has its mass between x − 1/255 and x + 1/255, and the first and last level what lies beyond (Salimans et al. 2017,
PixelCNN++, https://arxiv.org/abs/1701.05517, eq. 2): for a wide density that is the density times the width of a level, and
−log p(x | z) of the Gaussian the squared error over 2σ², plus a constant.

    gaussian          N(μ, σ²)                  squared error, L2; the VQ-VAE's and the lecture's
    laplace           Laplace(μ, b)             absolute error, L1
    bernoulli         p of white                cross-entropy; for black-and-white images
    logistic_mixture  Σ_k π_k Logistic(μ_k, s_k)   each pixel says itself how sure it is; later channels see the earlier ones
    categorical       256 numbers a pixel       any shape, and no notion that neighbouring levels are alike
"""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Discriminator, Field, Tag
from torch import Generator, Tensor, nn

from smalti.common.config import Settings

LEVELS = 256
HALF = 1 / 255  # of a level's width: levels are 2 / 255 apart
OPEN = 50.0  # scales that the outermost levels go on: e^-50 lies beyond, and an infinite end would have NaN for a gradient
KIND = """`gaussian`: squared error; `laplace`: absolute error; `bernoulli`: black-and-white images; `logistic_mixture`: each
pixel with its own spread, best in bits; `categorical`: 256 numbers a pixel"""


# ------------------------------------------------------------------------------------------------------------- settings


class GaussianConfig(Settings):
    """A normal distribution around what is decoded: the squared error (van den Oord et al. 2017)."""

    kind: Annotated[Literal["gaussian"], Field(description=KIND)] = "gaussian"
    sigma: float | None = Field(None, gt=1e-4, le=10)
    """its deviation, pixels being in [-1, 1]; null learns one for each channel, which is sqrt of the mean squared error"""

    def outputs(self, channels: int) -> int:
        """P, numbers a pixel."""
        return channels


class LaplaceConfig(Settings):
    """A Laplace distribution around what is decoded: the absolute error."""

    kind: Annotated[Literal["laplace"], Field(description=KIND)] = "laplace"
    scale: float | None = Field(None, gt=1e-4, le=10)
    """its scale b, pixels being in [-1, 1]; null learns one for each channel, which is the mean absolute error"""

    def outputs(self, channels: int) -> int:
        return channels


class BernoulliConfig(Settings):
    """Black or white. Wants images.black_and_white: true."""

    kind: Annotated[Literal["bernoulli"], Field(description=KIND)] = "bernoulli"

    def outputs(self, channels: int) -> int:
        return channels


class LogisticMixtureConfig(Settings):
    """A mixture of logistics at each pixel, its channels one after the other (Salimans et al. 2017)."""

    kind: Annotated[Literal["logistic_mixture"], Field(description=KIND)] = "logistic_mixture"
    components: int = Field(5, ge=1, le=64)
    """logistics a pixel"""

    def outputs(self, channels: int) -> int:
        return self.components * (1 + 2 * channels + channels * (channels - 1) // 2)


class CategoricalConfig(Settings):
    """A free distribution over the 256 levels of each channel."""

    kind: Annotated[Literal["categorical"], Field(description=KIND)] = "categorical"

    def outputs(self, channels: int) -> int:
        return channels * LEVELS


def _kind(given: Any) -> Any:
    return given.get("kind", "gaussian") if isinstance(given, dict) else getattr(given, "kind", "")


LikelihoodConfig = Annotated[
    Annotated[GaussianConfig, Tag("gaussian")]
    | Annotated[LaplaceConfig, Tag("laplace")]
    | Annotated[BernoulliConfig, Tag("bernoulli")]
    | Annotated[LogisticMixtureConfig, Tag("logistic_mixture")]
    | Annotated[CategoricalConfig, Tag("categorical")],
    Discriminator(_kind),
]


# ----------------------------------------------------------------------------------------------------- what they share


def levels_of(images: Tensor) -> Tensor:
    """[-1, 1] -> the level of each pixel, int64 in [0, 255]."""
    return ((images.double() + 1) * 127.5).round().clamp(0, LEVELS - 1).long()


def pixels_of(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels -> [-1, 1]."""
    return levels.to(dtype) / 127.5 - 1


def all_levels(like: Tensor) -> Tensor:
    """(256,): what the pixels of each level are."""
    return pixels_of(torch.arange(LEVELS, device=like.device), like.dtype)


def edges(x: Tensor, location: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Where the levels of pixels x begin and end, in scales from the location."""
    inverse = torch.exp(-log_scale)
    low, high = (x - HALF - location) * inverse, (x + HALF - location) * inverse
    first, last = high.clamp_max(0) - OPEN, low.clamp_min(0) + OPEN
    return torch.where(x < -1 + HALF, first, low), torch.where(x > 1 - HALF, last, high)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x), x < 0."""
    return torch.log(-torch.expm1(x).clamp_max(-torch.finfo(x.dtype).tiny))


def log_normal_mass(a: Tensor, b: Tensor) -> Tensor:
    """log(Φ(b) − Φ(a)), a < b, also far from the middle: taken on the side where Φ is small."""
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    log_b = torch.special.log_ndtr(b)
    return log_b + log1mexp(torch.special.log_ndtr(a) - log_b)


def log_laplace_mass(a: Tensor, b: Tensor) -> Tensor:
    """The same of the Laplace distribution."""
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    below = b.clamp_max(0)
    outside = below - math.log(2) + log1mexp(a - below)
    around = torch.log1p(-(torch.exp(-b.clamp_min(0)) + torch.exp(a)) / 2)
    return torch.where(b <= 0, outside, around)


def log_logistic_mass(a: Tensor, b: Tensor) -> Tensor:
    """log(S(b) − S(a)) of the logistic function S, which is S(b) S(−a) (1 − e^(a − b))."""
    return F.logsigmoid(b) + F.logsigmoid(-a) + log1mexp(a - b)


class Likelihood(nn.Module):
    """p(x | z), z being behind `output`. fp32 inside, fp64 where the output is; under autocast too."""

    @property
    def kind(self) -> str:
        """Its name in the settings."""
        return next(name for name, cls in KINDS.items() if type(self) is cls)

    def weight(self) -> Tensor | float:
        """What a nat of a pixel counts in the loss beside the codebook's terms: constant to the gradient."""
        return 1.0

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """log p of every pixel, its channels summed: (B, H, W), in nats."""
        raise NotImplementedError

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """−log p(x | z) of each image: (B,), in nats."""
        with torch.autocast(output.device.type, enabled=False):
            return -self.log_prob(_fp32(output), images.to(_fp32(output).dtype)).sum((1, 2))

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
            uniform = torch.rand(cumulative.shape[:-1], generator=generator, device=cumulative.device, dtype=cumulative.dtype)
            drawn = torch.searchsorted(cumulative, (uniform * cumulative[..., -1])[..., None], right=True)[..., 0]
            images[:, channel] = pixels_of(drawn.clamp_max(LEVELS - 1), images.dtype)
        return images


def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ------------------------------------------------------------------------------------------------------ the likelihoods


class _Location(Likelihood):
    """μ is the output, and one scale a channel, a parameter where it is learned."""

    def __init__(self, scale: float | None, channels: int):
        super().__init__()
        start = torch.full((channels,), math.log(scale or 0.5))
        if scale is None:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start, persistent=False)

    def log_mass(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        return self.log_mass(*edges(images, output, self.log_scale.to(output.dtype)[:, None, None])).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return _fp32(output).clamp(-1, 1)

    def mode(self, output: Tensor) -> Tensor:
        return self.mean(output)

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        location = _fp32(output)[:, channel, ..., None]
        return self.log_mass(*edges(all_levels(location), location, self.log_scale.to(location.dtype)[channel])).exp()


class Gaussian(_Location):
    """A nat counts 2σ², so that the gradient of the loss is the squared error's whatever σ is: a mean has the same maximum
    likelihood estimate at every σ, and the balance with the codebook's losses stays that of eq. 3 of the VQ-VAE."""

    def __init__(self, config: GaussianConfig, channels: int):
        super().__init__(config.sigma, channels)

    def weight(self) -> Tensor:
        return 2 * (2 * self.log_scale.detach()).exp().mean()

    def log_mass(self, a: Tensor, b: Tensor) -> Tensor:
        return log_normal_mass(a, b)


class Laplace(_Location):
    """A nat counts b: the gradient of the loss is the absolute error's."""

    def __init__(self, config: LaplaceConfig, channels: int):
        super().__init__(config.scale, channels)

    def weight(self) -> Tensor:
        return self.log_scale.detach().exp().mean()

    def log_mass(self, a: Tensor, b: Tensor) -> Tensor:
        return log_laplace_mass(a, b)


class Bernoulli(Likelihood):
    """The output is the log-odds of white. Any level but black and white has no probability."""

    def __init__(self, config: BernoulliConfig, channels: int):
        super().__init__()

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        log_p = torch.where(images > 0, F.logsigmoid(output), F.logsigmoid(-output))
        return torch.where(images.abs() > 1 - HALF, log_p, -torch.inf).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return 2 * torch.sigmoid(_fp32(output)) - 1

    def mode(self, output: Tensor) -> Tensor:
        return torch.where(output > 0, 1.0, -1.0)

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        white = torch.sigmoid(_fp32(output)[:, channel])
        between = white.new_zeros(*white.shape, LEVELS - 2)
        return torch.cat([1 - white[..., None], between, white[..., None]], dim=-1)


class LogisticMixture(Likelihood):
    """p(x_1, ..., x_C) = Σ_k π_k Π_c Logistic(x_c; μ_kc + Σ_{d<c} α_kcd x_d, s_kc): a component is a colour with its spread,
    and the mean of a later channel moves with what the earlier ones are (PixelCNN++, sec. 2.2)."""

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
        """log π (B, M, H, W); μ and log s (B, M, C, H, W); α (B, M, C (C − 1) / 2, H, W)."""
        M, C = self.components, self.channels
        parts = rearrange(_fp32(output), "b (m p) h w -> b m p h w", m=M)
        logits, means, log_scales, alphas = parts.split([1, C, C, C * (C - 1) // 2], dim=2)
        means = means + self.start.to(means.dtype)[:, None, None, None]
        return logits[:, :, 0].log_softmax(1), means, (log_scales - 2).clamp(self.LEAST, self.MOST), alphas.tanh()

    def _moved(self, means: Tensor, alphas: Tensor, channel: int, before: Tensor) -> Tensor:
        """μ_kc of a channel, once the channels `before` (B, 1 or M, c, H, W) are known: (B, M, H, W)."""
        first = channel * (channel - 1) // 2
        return means[:, :, channel] + (alphas[:, :, first : first + channel] * before).sum(2)

    def _log_joint(self, output: Tensor, images: Tensor, channels: int) -> Tensor:
        """log π_k + log p of the first channels, of each component: (B, M, H, W)."""
        log_pi, means, log_scales, alphas = self._parts(output)
        for c in range(channels):
            mean = self._moved(means, alphas, c, images[:, None, :c])
            log_pi = log_pi + log_logistic_mass(*edges(images[:, None, c], mean, log_scales[:, :, c]))
        return log_pi

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        return self._log_joint(output, images, self.channels).logsumexp(1)

    def _centres(self, output: Tensor) -> Tensor:
        """Each component's own colour: (B, M, C, H, W) in [-1, 1]."""
        _, means, _, alphas = self._parts(output)
        centres = means[:, :, :0]
        for c in range(self.channels):
            centres = torch.cat([centres, self._moved(means, alphas, c, centres).clamp(-1, 1)[:, :, None]], dim=2)
        return centres

    def mean(self, output: Tensor) -> Tensor:
        return (self._parts(output)[0].exp()[:, :, None] * self._centres(output)).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """The likeliest of the components' colours, pixel by pixel."""
        centres = pixels_of(levels_of(self._centres(output)), _fp32(output).dtype)
        likelihoods = torch.stack([self.log_prob(output, centre) for centre in centres.unbind(1)], dim=1)
        best = likelihoods.argmax(1)[:, None, None].expand(-1, 1, self.channels, -1, -1)
        return centres.gather(1, best)[:, 0]

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        images = images.to(_fp32(output).dtype)
        log_weights = self._log_joint(output, images, channel).log_softmax(1)[..., None]
        _, means, log_scales, alphas = self._parts(output)
        mean = self._moved(means, alphas, channel, images[:, None, :channel])[..., None]  # (B, M, H, W, 1)
        mass = log_logistic_mass(*edges(all_levels(mean), mean, log_scales[:, :, channel, ..., None]))
        return (log_weights + mass).exp().sum(1)


class Categorical(Likelihood):
    """The output is 256 logits for each channel."""

    NAT = 0.1  # as of the mixture

    def __init__(self, config: CategoricalConfig, channels: int):
        super().__init__()

    def weight(self) -> float:
        return self.NAT

    def _log_p(self, output: Tensor) -> Tensor:
        """(B, 256, C, H, W)."""
        return rearrange(_fp32(output), "b (c n) h w -> b n c h w", n=LEVELS).log_softmax(1)

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        return self._log_p(output).gather(1, levels_of(images)[:, None]).sum((1, 2))

    def mean(self, output: Tensor) -> Tensor:
        return torch.einsum("bnchw,n->bchw", self._log_p(output).exp(), all_levels(_fp32(output)))

    def mode(self, output: Tensor) -> Tensor:
        return pixels_of(self._log_p(output).argmax(1), _fp32(output).dtype)

    def probabilities(self, output: Tensor, images: Tensor, channel: int) -> Tensor:
        return rearrange(self._log_p(output)[:, :, channel], "b n h w -> b h w n").exp()


KINDS = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "bernoulli": Bernoulli,
    "logistic_mixture": LogisticMixture,
    "categorical": Categorical,
}


def build_likelihood(config: LikelihoodConfig, channels: int) -> Likelihood:
    """The likelihood of a config, for images of so many channels."""
    return KINDS[config.kind](config, channels)
