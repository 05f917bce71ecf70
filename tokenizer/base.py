"""What every image tokenizer is: images to indices and back, and a folder on the disk.

Shapes: images (B, C, H, W) in [-1, 1]; indices (B, h, w) int64 in [0, K), or (B, h, w, Q) where a place has Q > 1 codes.
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
    """`config` says image_size, image_channels, grid (h, w), codebook_size K, code_depth Q and factors."""

    face, files = "load_tokenizer", folder.MODEL_FILES
    config_class: ClassVar[type[ImageTokenizerConfig]]
    config: ImageTokenizerConfig
    likelihood: Likelihood  # p(x | z), of what `output` gives

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Of one image's indices: (h, w), or (h, w, Q)."""
        depth = self.config.code_depth
        return (*self.config.grid, depth) if depth > 1 else self.config.grid

    @property
    def black_and_white(self) -> bool:
        """Whether images are such that every pixel is -1 or 1."""
        return isinstance(self.likelihood, Bernoulli)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) in [-1, 1] -> indices (B, h, w), or (B, h, w, Q).

        Raises:
            ValueError: images of another size or number of channels than the tokenizer was trained for, or whose codes
                would mean nothing, the encoder's output being NaN or Inf.
        """
        expected = (self.config.image_channels, *self.config.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must be (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        return self._encode(images)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """indices (B, h, w), or (B, h, w, Q) -> images (B, C, H, W) in [-1, 1], the mean of p(x | z). Any grid decodes, to its
        size.

        Raises:
            ValueError: indices that no code has, or not on a grid of this tokenizer's depth.
        """
        return self.likelihood.mean(self.output(indices)).float()

    @torch.no_grad()
    def nll(self, images: Tensor, indices: Tensor) -> Tensor:
        """−log p(images | indices) of 8-bit images (B, C, H, W) in [-1, 1], in nats: (B,). Over ln 2 · C · H · W it is the
        distortion in bits per dimension."""
        return self.likelihood.nll(self.output(indices), images)

    @property
    def stochastic(self) -> bool:
        """Whether q(z | x) is more than the one code that `encode` gives."""
        return False

    @torch.no_grad()
    def log_posterior(self, images: Tensor) -> Tensor | None:
        """log q(z | x) of every code at every place, (B, h, w, K); None where the posterior is the one code `encode` gives."""
        return None

    @torch.no_grad()
    def output(self, indices: Tensor) -> Tensor:
        """indices -> (B, P, H, W), what `likelihood` reads. Raises as `decode` does."""
        K, Q = self.config.codebook_size, self.config.code_depth
        shape = ("h", "w", Q) if Q > 1 else ("h", "w")
        if indices.ndim != 1 + len(shape) or indices.is_floating_point() or (Q > 1 and indices.shape[-1] != Q):
            raise ValueError(
                f"indices must be integers (B, {', '.join(map(str, shape))}), got {indices.dtype} {tuple(indices.shape)}"
            )
        if indices.numel() and not (indices.min() >= 0 and indices.max() < K):
            raise ValueError(f"indices must lie in [0, {K}), got {indices.min().item()} to {indices.max().item()}")
        return self._output(indices)

    def _encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def _output(self, indices: Tensor) -> Tensor:
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

    def _output(self, indices: Tensor) -> Tensor:
        return self.draw(self.lookup(indices))
