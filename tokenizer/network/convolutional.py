"""The convolutional encoder and decoder of the VQGAN family: residual blocks, GroupNorm, SiLU.

Shapes, for images (B, C, H, W) and a downsampling f:
    encoder  (B, C, H, W) -> (B, N, H / f, W / f): z_e, or the numbers of a posterior q(z | x)
    decoder  (B, D, H / f, W / f) -> (B, P, H, W), P numbers a pixel that the likelihood reads: C means, or more

Esser et al. (2021), https://arxiv.org/abs/2012.09841, table 7. `patch` folds pixels into channels before the first
convolution and unfolds them after the last (space-to-depth, Shi et al. 2016, https://arxiv.org/abs/1609.05158).
"""

import math
from typing import Protocol

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ConvolutionalSizes(Protocol):
    """The settings of the two networks."""

    @property
    def patch(self) -> int:
        """Return the pixels a side that the first layer folds into channels."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Return the width of each level."""

    @property
    def blocks(self) -> int:
        """Return the residual blocks of a level."""

    @property
    def attention(self) -> bool:
        """Return whether the lowest level has self-attention."""


def norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm, with 8 channels a group, or from 256 channels on with 32 groups, or fewer that divide."""
    return nn.GroupNorm(channels // 8 if channels < 256 else math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), where the second convolution starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class AttentionBlock(nn.Module):
    """x + self-attention of one head over all places, which starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (qkv c) h w -> qkv b 1 (h w) c", qkv=3)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(y, "b 1 (h w) c -> b c h w", h=x.shape[2]))


def last_weight(decoder: nn.Module) -> nn.Parameter:
    """Return the weights of the last layer of a decoder."""
    return [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]


def middle(sizes: ConvolutionalSizes) -> nn.Sequential:
    """Return the blocks of the lowest level, the same in encoder and decoder."""
    channels = sizes.channels[-1]
    attention = [AttentionBlock(channels)] if sizes.attention else []
    return nn.Sequential(ResidualBlock(channels), *attention, ResidualBlock(channels))


class ConvolutionalEncoder(nn.Sequential):
    """The encoder: images (B, C, H, W) -> (B, outputs, h, w)."""

    def __init__(self, sizes: ConvolutionalSizes, image_channels: int, outputs: int):
        first, last = sizes.channels[0], sizes.channels[-1]
        layers: list[nn.Module] = [nn.PixelUnshuffle(sizes.patch)] if sizes.patch > 1 else []
        layers.append(nn.Conv2d(image_channels * sizes.patch**2, first, 3, padding=1))
        for level, channels in enumerate(sizes.channels):
            layers += [ResidualBlock(channels) for _ in range(sizes.blocks)]
            if level + 1 < len(sizes.channels):
                layers.append(nn.Conv2d(channels, sizes.channels[level + 1], 4, stride=2, padding=1))
        layers += [middle(sizes), norm(last), nn.SiLU(), nn.Conv2d(last, outputs, 1)]
        super().__init__(*layers)


class ConvolutionalDecoder(nn.Sequential):
    """The decoder: vectors (B, inputs, h, w) -> (B, outputs, H, W), see `tokenizer/criterion/likelihood`."""

    def __init__(self, sizes: ConvolutionalSizes, inputs: int, outputs: int):
        first, last = sizes.channels[0], sizes.channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(inputs, last, 3, padding=1), middle(sizes)]
        for level in reversed(range(len(sizes.channels))):
            channels = sizes.channels[level]
            layers += [ResidualBlock(channels) for _ in range(sizes.blocks)]
            if level > 0:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, sizes.channels[level - 1], 3, padding=1)]
        layers += [norm(first), nn.SiLU(), nn.Conv2d(first, outputs * sizes.patch**2, 3, padding=1)]
        layers += [nn.PixelShuffle(sizes.patch)] if sizes.patch > 1 else []
        super().__init__(*layers)
