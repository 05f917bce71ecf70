"""The convolutional encoder and decoder of the VQGAN family: residual blocks, GroupNorm, SiLU.

Shapes, for images (B, C, H, W) and a downsampling f:
    encoder  (B, C, H, W) -> z_e (B, D, H / f, W / f)
    decoder  z_q (B, D, H / f, W / f) -> (B, P, H, W), P numbers a pixel that the likelihood reads: C means, or more

Esser et al. (2021), https://arxiv.org/abs/2012.09841, table 7. `patch` folds pixels into channels before the first
convolution and unfolds them after the last (space-to-depth, Shi et al. 2016, https://arxiv.org/abs/1609.05158).
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.tokenizer.vqvae.config import VQVAEConfig


def norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm, with 8 channels a group, or with 32 groups from 256 channels on."""
    return nn.GroupNorm(channels // 8 if channels < 256 else 32, channels, eps=1e-6)


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


def vqvae_middle(config: VQVAEConfig) -> nn.Sequential:
    """Return the blocks of the lowest level, the same in encoder and decoder."""
    channels = config.channels[-1]
    attention = [AttentionBlock(channels)] if config.attention else []
    return nn.Sequential(ResidualBlock(channels), *attention, ResidualBlock(channels))


class VQVAEEncoder(nn.Sequential):
    """The encoder: images (B, C, H, W) -> z_e (B, D, h, w)."""

    def __init__(self, config: VQVAEConfig):
        first, last = config.channels[0], config.channels[-1]
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch)] if config.patch > 1 else []
        layers.append(nn.Conv2d(config.image_channels * config.patch**2, first, 3, padding=1))
        for level, channels in enumerate(config.channels):
            layers += [ResidualBlock(channels) for _ in range(config.blocks)]
            if level + 1 < len(config.channels):
                layers.append(nn.Conv2d(channels, config.channels[level + 1], 4, stride=2, padding=1))
        layers += [vqvae_middle(config), norm(last), nn.SiLU(), nn.Conv2d(last, config.quantizer.dim, 1)]
        super().__init__(*layers)


class VQVAEDecoder(nn.Sequential):
    """The decoder: z_q (B, D, h, w) -> output (B, P, H, W), see `tokenizer/criterion/likelihood`."""

    def __init__(self, config: VQVAEConfig):
        first, last = config.channels[0], config.channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(config.quantizer.dim, last, 3, padding=1), vqvae_middle(config)]
        for level in reversed(range(len(config.channels))):
            channels = config.channels[level]
            layers += [ResidualBlock(channels) for _ in range(config.blocks)]
            if level > 0:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, config.channels[level - 1], 3, padding=1)]
        pixels = config.likelihood.outputs(config.image_channels) * config.patch**2
        layers += [norm(first), nn.SiLU(), nn.Conv2d(first, pixels, 3, padding=1)]
        layers += [nn.PixelShuffle(config.patch)] if config.patch > 1 else []
        super().__init__(*layers)
