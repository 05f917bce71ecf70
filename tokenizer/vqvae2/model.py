"""The VQ-VAE-2: a convolutional encoder, levels of codes over each other, a convolutional decoder.

    L = −log p(x | z_q) + Σ_l |sg[z_e_l] − e_l|² + β Σ_l |z_e_l − sg[e_l]|²

Razavi et al. (2019), https://arxiv.org/abs/1906.00446, eq. 2, summed over levels l;
`tokenizer/vqvae2/hierarchy.py` has what they are.

Shapes: images (B, C, H, W) in [-1, 1]; codes (B, T), level after level, coarse first; a codebook is a level's, or one
depth of it where a place has Q codes, and numbered as `Layout.codebook_of` has it.
"""

from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.split import ImageSplit
from smalti.tokenizer.bottleneck.base import Table
from smalti.tokenizer.code_autoencoder import ConvolutionalCodeAutoencoder
from smalti.tokenizer.codebooks.initialization import initialize_quantizer, refit_quantizer
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.network.grid import halved
from smalti.tokenizer.network_tokenizer import AROUND
from smalti.tokenizer.vqvae2.config import VQVAE2Config
from smalti.tokenizer.vqvae2.hierarchy import Hierarchy

PLACES = 2**13  # of the bottom that single codes are drawn amid at once


@VQVAE2Config.register
class VQVAE2(ConvolutionalCodeAutoencoder):
    """The VQ-VAE-2, which `tokenizer/train.py` trains.

    Codes that are drawn (gumbel) at one level change what the levels below see, so that log q(z | x) is no product over
    places: `log_posterior` is not offered, and likelihoods are of the codes that `encode` gives.
    """

    config: VQVAE2Config
    quantizer: Hierarchy

    def _new_quantizer(self) -> Hierarchy:
        return Hierarchy(self.config)

    def _output(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.draw(self.quantizer.lookup(latents).unflatten(2, self.config.grid))

    @torch.no_grad()
    def decode_coarse(self, latents: Tensor, grids: int) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that the first `grids` levels of codes (B, T) make."""
        joined = self.quantizer.lookup_coarse(latents, grids).unflatten(2, self.config.grid)
        return self.likelihood.mean(self.draw(joined)).float()

    # ----------------------------------------------------------------------------------------------------- single codes

    def code_tables(self) -> list[Tensor]:
        """Return the vectors (K, D) of each codebook; an empty list where codes of any level are digits."""
        tables = super().code_tables()
        return tables if len(tables) == len(self.config.grids) * self.config.layout.depth else []

    def _drawn(self, means: list[Tensor], row: int, vectors: Tensor) -> Tensor:
        """Return the patches (N, C, p, p) that vectors (N, D) draw in the middle of a level of AROUND x AROUND places.

        All other places, and those of the other levels, hold the mean of their codes.
        """
        Q, levels, middle = self.config.layout.depth, self.config.levels, AROUND // 2
        level = row // Q
        sides = [AROUND * 2 ** (levels - 1 - level)]  # of the bottom, which is drawn as large as the level needs it
        while len(sides) < levels:
            sides.insert(0, halved((sides[0], sides[0]))[0])
        around = [torch.stack(means[Q * at : Q * at + Q]).sum(0)[None, :, None, None] for at in range(levels)]
        found = []
        for some in vectors.split(max(1, PLACES // sides[-1] ** 2)):
            z_q = [mean.repeat(len(some), 1, side, side) for mean, side in zip(around, sides, strict=True)]
            z_q[level][:, :, middle, middle] += some - means[row]
            drawn = self.likelihood.mean(self.draw(self.quantizer.join(z_q)))
            p = drawn.shape[-1] // AROUND
            found.append(drawn[..., middle * p : (middle + 1) * p, middle * p : (middle + 1) * p])
        return torch.cat(found)

    # ------------------------------------------------------------------------------------------------------ in training

    def begin(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> None:
        otherwise = "choose a smaller one, or fewer model.levels"
        for level, bottleneck in enumerate(self.quantizer.bottlenecks):  # coarse first: a level sees the codes above it
            grid, latents = self.config.layout.grids[level], partial(self.latents_of, level)
            initialize_quantizer(bottleneck, grid, latents, split, c, accelerator, otherwise)

    def refit(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> tuple[Table, ...]:
        found: list[Table] = []
        for level, bottleneck in enumerate(self.quantizer.bottlenecks):
            grid, latents = self.config.layout.grids[level], partial(self.latents_of, level)
            found += refit_quantizer(bottleneck, grid, latents, split, c, accelerator)
        return tuple(found)

    def latents_of(self, level: int, images: Tensor) -> Tensor:
        """Return z_e (B, D, h, w) of a level, which depends on the codes of the levels above it."""
        return self.quantizer.levels(self.latents(images)).z_e[level]
