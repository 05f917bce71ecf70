"""The VQ-VAE: a convolutional encoder, a quantizer, a convolutional decoder.

    L = −log p(x | z_q) + |sg[z_e] − e|² + β |z_e − sg[e]|²

van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3.

Shapes: images (B, C, H, W) in [-1, 1], z_e and z_q (B, D, h, w), flat (B, D, P); indices (B, P) or (B, P, Q) in [0, K);
output (B, N, H, W), N numbers a pixel, which a likelihood reads as p(images | z_q).
"""

import math
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.data.split import ImageSplit
from smalti.common.errors import UserError
from smalti.tokenizer.base import Terms, TrainedTokenizer
from smalti.tokenizer.bottleneck.base import Quantized, Table, build_quantizer
from smalti.tokenizer.bottleneck.gumbel import GumbelQuantizer
from smalti.tokenizer.codebooks.initialization import initialize_codebook
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.likelihood.base import build_likelihood
from smalti.tokenizer.network.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from smalti.tokenizer.network_tokenizer import NetworkTokenizer
from smalti.tokenizer.vqvae.config import VQVAEConfig


class Reconstruction(NamedTuple):
    """The cost of images given their codes, and the codes."""

    nll: Tensor  # (B,) −log p(images | z_q), nats
    quantized: Quantized


@VQVAEConfig.register
class VQVAE(NetworkTokenizer, TrainedTokenizer):
    """The VQ-VAE, which `tokenizer/train.py` trains."""

    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = ConvolutionalEncoder(config, config.image_channels, config.quantizer.dim)
        self.quantizer = build_quantizer(config.quantizer)
        outputs = config.likelihood.outputs(config.image_channels)
        self.decoder = ConvolutionalDecoder(config, config.quantizer.dim, outputs)
        self.likelihood = build_likelihood(config.likelihood, config.image_channels)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Terms:
        nll, quantized = self.reconstruct(images)
        nats = nll.mean() / images[0].numel()  # a dimension
        losses = {
            "reconstruction_loss": self.likelihood.weight() * nats,
            "codebook_loss": quantized.codebook_loss,
            "commitment_loss": quantized.commitment_loss,
            "regularizer": quantized.regularizer,
        }
        return Terms(losses, {"distortion": nats / math.log(2)}, quantized.z_e, quantized)

    def weights(self, c: TrainConfig) -> dict[str, float]:
        return {"commitment_loss": c.commitment_weight}  # beta, on the commitment loss and only there

    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Return the cost of images given their codes, and the codes."""
        z_e = self.latents(images)
        quantized = self.quantizer(z_e.flatten(2))
        output = self.draw(quantized.z_q.unflatten(2, z_e.shape[2:]))
        return Reconstruction(self.likelihood.nll(output, images), quantized)

    def latents(self, images: Tensor) -> Tensor:
        z_e: Tensor = self.encoder(images)
        return z_e

    def draw(self, z_q: Tensor) -> Tensor:
        dtype = next(self.decoder.parameters()).dtype  # z_q is fp32 also in a model of half precision
        return self.decoder(z_q.to(dtype))

    def _encode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        z_e = self.latents(images)
        bad = ~z_e.flatten(1).isfinite().all(1)
        if bad.any():  # the nearest code to NaN is some code: it would be written down as if it meant something
            raise UserError(
                f"the encoder's output is NaN or Inf for {int(bad.sum())} of {len(bad)} images: its weights have "
                "diverged, or precision fp32 is needed; train another --run with a lower lr"
            )
        return self.quantizer(z_e.flatten(2)).indices

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

    def anneal(self, progress: float) -> None:
        self.quantizer.anneal(progress)

    def tables(self) -> tuple[Table, ...]:
        return self.quantizer.tables()
