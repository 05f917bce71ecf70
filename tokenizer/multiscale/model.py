"""The multi-scale tokenizer of VAR: a convolutional encoder, a quantizer of several scales, a convolutional decoder.

    L = −log p(x | f̂_S) + 1/S Σ_s mean (sg[f] − f̂_s)² + β 1/S Σ_s mean (f − sg[f̂_s])²

Tian et al. (2024), https://arxiv.org/abs/2404.02905, sec. 3.2 and eq. 5; `tokenizer/multiscale/quantizer.py` has what
f̂_s is.

Shapes: images (B, C, H, W) in [-1, 1], z_e = f and z_q = f̂_S (B, D, h, w); codes (B, T), scale after scale.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.split import ImageSplit
from smalti.tokenizer.bottleneck.base import Table
from smalti.tokenizer.code_autoencoder import ConvolutionalCodeAutoencoder
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.multiscale.config import MultiscaleConfig
from smalti.tokenizer.multiscale.initialization import initialize_scales, refit_scales
from smalti.tokenizer.multiscale.quantizer import MultiscaleQuantizer

PLACES = 2**13  # of f that single codes are drawn amid at once
MOST_SIDE = 32  # pixels of the picture of a code, which of a coarse scale is much of the image


@MultiscaleConfig.register
class MultiscaleTokenizer(ConvolutionalCodeAutoencoder):
    """The multi-scale tokenizer, which `tokenizer/train.py` trains."""

    config: MultiscaleConfig
    quantizer: MultiscaleQuantizer

    def _new_quantizer(self) -> MultiscaleQuantizer:
        return MultiscaleQuantizer(self.config.quantizer, self.config.grids, shared=self.config.shared)

    def begin(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> None:
        initialize_scales(self, self.quantizer, split, c, accelerator)

    def refit(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> tuple[Table, ...]:
        return refit_scales(self, self.quantizer, split, c, accelerator)

    def _output(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.draw(self.quantizer.lookup(latents).unflatten(2, self.config.grid))

    @torch.no_grad()
    def decode_coarse(self, latents: Tensor, grids: int) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that the first `grids` scales of codes (B, T) make."""
        f_hat = self.quantizer.lookup_coarse(latents, grids).unflatten(2, self.config.grid)
        return self.likelihood.mean(self.draw(f_hat)).float()

    def code_tables(self) -> list[Tensor]:
        tables = super().code_tables()
        return tables * len(self.config.grids) if self.config.shared else tables

    def _drawn(self, means: list[Tensor], row: int, vectors: Tensor) -> Tensor:
        """Return what vectors (N, D) of a scale draw at the place in the middle of its grid, amid the means of all
        scales: the pixels of that place, of a grid of one place the whole image."""
        h, w = self.config.grids[row]
        around = [
            mean[None, :, None].expand(-1, -1, a * b) for mean, (a, b) in zip(means, self.config.grids, strict=True)
        ]
        others = [self.quantizer.brought_up(s, e) for s, e in enumerate(around) if s != row]
        rows, columns = (
            slice(round(n // 2 * pixels / n), round((n // 2 + 1) * pixels / n))
            for n, pixels in zip((h, w), self.config.image_size, strict=True)
        )
        found = []
        for some in vectors.split(max(1, PLACES // (self.config.grid[0] * self.config.grid[1]))):
            e = around[row].repeat(len(some), 1, 1)
            e[:, :, h // 2 * w + w // 2] = some
            z_q = sum(others, self.quantizer.brought_up(row, e))
            seen = self.likelihood.mean(self.draw(z_q))[..., rows, columns]
            small = min(MOST_SIDE, seen.shape[2]), min(MOST_SIDE, seen.shape[3])
            found.append(F.adaptive_avg_pool2d(seen, small))
        return torch.cat(found)
