"""The image tokenizer: a convolutional encoder, a quantizer, a convolutional decoder.

Shapes: images (B, C, H, W) in [-1, 1], z_e and z_q (B, D, h, w), indices (B, h, w) in [0, K).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common import folder
from tokenizer.config import TokenizerConfig
from tokenizer.layers import Decoder, Encoder
from tokenizer.quantize import Quantized, build_quantizer


class Reconstruction(NamedTuple):
    images: Tensor  # (B, C, H, W), not clamped
    quantized: Quantized


class Tokenizer(nn.Module):
    """Images to indices and back."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor) -> Reconstruction:
        quantized = self.quantizer(self.encoder(images))
        return Reconstruction(self.decoder(quantized.z_q), quantized)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) in [-1, 1] -> indices (B, h, w).

        Raises:
            ValueError: images of another size or number of channels than the tokenizer was trained for.
        """
        expected = (self.config.image_channels, *self.config.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must be (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        return self.quantizer(self.encoder(images)).indices

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """indices (B, h, w) -> images (B, C, H, W), clamped to [-1, 1].

        Raises:
            ValueError: indices that no codebook entry has, or not on a grid.
        """
        K = self.config.quantizer.codebook_size
        if indices.ndim != 3 or indices.is_floating_point():
            raise ValueError(f"indices must be integers (B, h, w), got {indices.dtype} {tuple(indices.shape)}")
        if indices.numel() and not (indices.min() >= 0 and indices.max() < K):
            raise ValueError(f"indices must lie in [0, {K}), got {indices.min().item()} to {indices.max().item()}")
        return self.decoder(self.lookup(indices)).float().clamp(-1, 1)

    def lookup(self, indices: Tensor) -> Tensor:
        """indices (B, h, w) -> z_q (B, D, h, w)."""
        return self.quantizer.lookup(indices)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Tokenizer":
        """Read a folder, or a Hub repository, that `save_pretrained` wrote."""
        return folder.load_model(path, cls, TokenizerConfig)
