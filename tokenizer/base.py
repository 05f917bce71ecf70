"""What every image tokenizer is: images to latents and back, and a folder on the disk.

Shapes: images (B, C, H, W) in [-1, 1]; codes (B, T) int64 in [0, K), as the layout has them: grid after grid, place after place
in raster order, the Q codes of a place side by side. On a grid they are `indices`: (B, h, w), or (B, h, w, Q) where Q > 1.
"""

from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from smalti.common import folder
from smalti.common.hub import Pretrained
from smalti.tokenizer.config import ImageTokenizerConfig, TokenizerConfig, VQGANConfig
from smalti.tokenizer.likelihood import Bernoulli, Likelihood
from smalti.tokenizer.quantizers.base import Quantizer


class ImageTokenizer(nn.Module, Pretrained):
    """`config` says image_size, image_channels and the layout of the codes."""

    face, files = "load_tokenizer", folder.MODEL_FILES
    config_class: ClassVar[type[ImageTokenizerConfig]]
    config: ImageTokenizerConfig
    likelihood: Likelihood  # p(x | z), of what `output` gives

    @property
    def black_and_white(self) -> bool:
        """Whether images are such that every pixel is -1 or 1."""
        return isinstance(self.likelihood, Bernoulli)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, T) of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: images of another size or number of channels than the tokenizer was trained for, or whose codes
                would mean nothing, the encoder's output being NaN or Inf.
        """
        expected = (self.config.image_channels, *self.config.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must be (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        return self._encode(images).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] of codes (B, T), the mean of p(x | z).

        Raises:
            ValueError: codes that there are not, or not as many as an image has.
        """
        return self.likelihood.mean(self.output(codes)).float()

    @torch.no_grad()
    def nll(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return −log p(images | codes) of 8-bit images (B, C, H, W) in [-1, 1], in nats: (B,). Over ln 2 · C · H · W it is the
        distortion in bits per dimension."""
        return self.likelihood.nll(self.output(codes), images)

    @property
    def stochastic(self) -> bool:
        """Whether q(z | x) is more than the one code that `encode` gives."""
        return False

    @torch.no_grad()
    def log_posterior(self, images: Tensor) -> Tensor | None:
        """log q(z | x) of every code at every place, (B, T, K); None where the posterior is the one code `encode` gives."""
        return None

    @torch.no_grad()
    def output(self, codes: Tensor) -> Tensor:
        """Return what `likelihood` reads, (B, P, H, W), of codes (B, T). Raises as `decode` does."""
        K, T = self.config.layout.codebook_size, self.config.layout.length
        if codes.ndim != 2 or codes.shape[1] != T or codes.is_floating_point():
            raise ValueError(f"codes must be integers (B, {T}), {self.config.layout}; got {codes.dtype} {tuple(codes.shape)}")
        if codes.numel() and not (codes.min() >= 0 and codes.max() < K):
            raise ValueError(f"codes must lie in [0, {K}), got {codes.min().item()} to {codes.max().item()}")
        return self._output(codes)

    def _encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def _output(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder.save_model(Path(path), self, self.config)

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        return folder.load_model(path, cls, cls.config_class)


class NetworkTokenizer(ImageTokenizer):
    """By an encoder, a quantizer and a decoder: a code stands for a vector, which is drawn together with those around it."""

    config: TokenizerConfig | VQGANConfig
    quantizer: Quantizer

    def lookup(self, indices: Tensor) -> Tensor:
        """indices (B, h, w), or (B, h, w, Q) -> z_q (B, D, h, w)."""
        return self.quantizer.lookup(indices)

    def draw(self, z_q: Tensor) -> Tensor:
        """z_q (B, D, h, w) -> output (B, P, H, W)."""
        raise NotImplementedError

    def _output(self, codes: Tensor) -> Tensor:
        (indices,) = self.config.layout.split(codes)
        return self.draw(self.lookup(indices))
