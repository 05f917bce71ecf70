"""A published VQGAN: images to indices and back by somebody else's network and weights.

Shapes, for L levels and f = 2^(L - 1):
    encoder, to_code      images (B, C, H, W) -> z (B, Z, h, w) -> z_e (B, D, h, w), h = H / f
    from_code, decoder    z_q (B, D, h, w) -> (B, Z, h, w) -> output (B, C, H, W), the mean of a Gaussian

Esser et al. (2021), https://arxiv.org/abs/2012.09841, table 7, in the three forms that are passed around:
taming-transformers' VQModel, LlamaGen's (Sun et al. 2024, https://arxiv.org/abs/2406.06525, sec. 2.1: few dimensions on
the unit sphere), and diffusers' VQModel. They differ in sizes, in where there is attention, and in whether codes are
normalised; `tokenizer/vqgan/published.py` knows the names of their tensors. `tokenizer/convert.py` fits the likelihood.
`tokenizer/train.py --start_from` trains it further, by the losses of `tokenizer/code_autoencoder.py`: taming's and
LlamaGen's for codebook and encoder, with β on the commitment loss, and −log p(x | z) for LPIPS and discriminator.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from smalti.common.data.split import ImageSplit
from smalti.tokenizer.bottleneck.vq import VectorQuantizer
from smalti.tokenizer.code_autoencoder import CodeAutoencoder
from smalti.tokenizer.codebooks.initialization import initialize_codebook
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig
from smalti.tokenizer.criterion.likelihood.gaussian import Gaussian
from smalti.tokenizer.criterion.likelihood.levels import HALF
from smalti.tokenizer.network_tokenizer import GridTokenizer
from smalti.tokenizer.vqgan.config import VQGANConfig


class VQGANResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), where x passes a 1 x 1 convolution if the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, eps=1e-6), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outputs, eps=1e-6), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class VQGANAttentionBlock(nn.Module):
    """x + self-attention of one head over all places."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # of contiguous rows: of views the CPU computes all (hw)² scores at once
        q, k, v = (
            rearrange(layer(y), "b c h w -> b 1 (h w) c").contiguous() for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(y, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Halve(nn.Conv2d):
    """A convolution of stride 2, padded on the right and below alone."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Conv2d):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where there is any, then the resampling."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module, groups: int):
        super().__init__()
        widths = [inputs, *[outputs] * blocks]
        self.blocks = nn.ModuleList(VQGANResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(_attention(outputs, groups, attention) for _ in range(blocks))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resample(x)


def _attention(channels: int, groups: int, wanted: bool) -> nn.Module:
    return VQGANAttentionBlock(channels, groups) if wanted else nn.Identity()


def vqgan_middle(config: VQGANConfig) -> nn.Sequential:
    """Return the blocks at the lowest resolution, the same in encoder and decoder."""
    channels, groups = config.channels[-1], config.norm_groups
    attention = _attention(channels, groups, config.middle_attention)
    return nn.Sequential(
        VQGANResidualBlock(channels, channels, groups), attention, VQGANResidualBlock(channels, channels, groups)
    )


class VQGANEncoder(nn.Module):
    """The encoder: images (B, C, H, W) -> z (B, Z, h, w)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        c, inputs = config, config.first_channels
        self.first = nn.Conv2d(c.image_channels, inputs, 3, padding=1)
        self.levels = nn.Sequential()
        for level, channels in enumerate(c.channels):
            resample = Halve(channels) if level + 1 < len(c.channels) else nn.Identity()
            self.levels.append(Level(inputs, channels, c.blocks, level in c.attention_levels, resample, c.norm_groups))
            inputs = channels
        self.middle = vqgan_middle(c)
        self.norm = nn.GroupNorm(c.norm_groups, inputs, eps=1e-6)
        self.last = nn.Conv2d(inputs, c.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(F.silu(self.norm(self.middle(self.levels(self.first(images))))))


class VQGANDecoder(nn.Module):
    """The decoder: z (B, Z, h, w) -> output (B, C, H, W). Its levels run from the lowest resolution to the highest."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        c, inputs = config, config.channels[-1]
        self.first = nn.Conv2d(c.z_channels, inputs, 3, padding=1)
        self.middle = vqgan_middle(c)
        self.levels = nn.Sequential()
        for level, channels in reversed(list(enumerate(c.channels))):
            resample = Double(channels) if level > 0 else nn.Identity()
            self.levels.append(
                Level(inputs, channels, c.blocks + 1, level in c.attention_levels, resample, c.norm_groups)
            )
            inputs = channels
        self.norm = nn.GroupNorm(c.norm_groups, inputs, eps=1e-6)
        self.last = nn.Conv2d(inputs, c.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(F.silu(self.norm(self.levels(self.middle(self.first(z))))))


@VQGANConfig.register
class VQGANTokenizer(CodeAutoencoder, GridTokenizer):
    """A published VQGAN. It comes without a likelihood, and gets a Gaussian around the output, one scale a channel."""

    decodes_only = ("from_code", "decoder", "likelihood")
    config: VQGANConfig
    likelihood: Gaussian

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder, self.to_code = VQGANEncoder(config), nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.quantizer = VectorQuantizer(config.quantizer)
        self.from_code, self.decoder = nn.Conv2d(config.code_dim, config.z_channels, 1), VQGANDecoder(config)
        self.likelihood = Gaussian(GaussianConfig(), config.image_channels)

    @torch.no_grad()
    def fit_likelihood(self, squared_error: Tensor) -> None:
        """Set each channel's scale to its maximum likelihood estimate by squared_error (C,), a mean over pixels."""
        log_scale = 0.5 * squared_error.clamp_min(1e-12).log()
        self.likelihood.log_scale.copy_(log_scale.clamp(min=math.log(HALF), max=math.log(10)))

    def latents(self, images: Tensor) -> Tensor:
        """Return z_e (B, D, h, w) of images (B, C, H, W), before it is normalised and quantized."""
        return self.to_code(self.encoder(images))

    def draw(self, z_q: Tensor) -> Tensor:
        return self.decoder(self.from_code(z_q.to(self.from_code.weight.dtype)))

    def begin(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> None:
        initialize_codebook(self, split, c, accelerator)
