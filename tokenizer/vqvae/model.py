"""The VQ-VAE: a convolutional encoder, a quantizer, a convolutional decoder.

    L = −log p(x | z_q) + |sg[z_e] − e|² + β |z_e − sg[e]|²

van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3.

Shapes: images (B, C, H, W) in [-1, 1], z_e and z_q (B, D, h, w), flat (B, D, P); indices (B, P) or (B, P, Q) in [0, K).
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.split import ImageSplit
from smalti.tokenizer.bottleneck.base import Quantizer, Table, build_quantizer
from smalti.tokenizer.bottleneck.gumbel import GumbelQuantizer
from smalti.tokenizer.code_autoencoder import ConvolutionalCodeAutoencoder
from smalti.tokenizer.codebooks.initialization import initialize_codebook, refit_quantizer
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.network_tokenizer import GridTokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig


@VQVAEConfig.register
class VQVAE(ConvolutionalCodeAutoencoder, GridTokenizer):
    """The VQ-VAE, which `tokenizer/train.py` trains."""

    config: VQVAEConfig

    def _new_quantizer(self) -> Quantizer:
        return build_quantizer(self.config.quantizer)

    @property
    def stochastic(self) -> bool:
        return isinstance(self.quantizer, GumbelQuantizer)

    @torch.no_grad()
    def log_posterior(self, images: Tensor) -> Tensor | None:
        if not isinstance(self.quantizer, GumbelQuantizer):
            return None
        log_q = self.quantizer.log_posterior(self.quantizer.prepare(self.latents(images).flatten(2).float()))
        return log_q.view(len(images), self.config.layout.length, -1)

    # ------------------------------------------------------------------------------------------------------ in training

    def begin(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> None:
        initialize_codebook(self, split, c, accelerator)

    def refit(self, split: ImageSplit, c: TrainConfig, accelerator: Accelerator) -> tuple[Table, ...]:
        (grid,) = self.config.layout.grids
        return refit_quantizer(self.quantizer, grid, self.latents, split, c, accelerator)
