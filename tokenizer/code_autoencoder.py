"""An encoder and a decoder around a quantizer, trained by the loss of the VQ-VAE: of any network, and convolutional.

    L = −log p(x | z_q) + codebook loss + β · commitment loss + the quantizer's regularizer

van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3; what the two losses are is the quantizer's.

Shapes: images (B, C, H, W) in [-1, 1], z_e and z_q (B, D, h, w), flat (B, D, P); codes flat as the layout has them;
output (B, N, H, W), N numbers a pixel, which a likelihood reads as p(images | z_q).
"""

import math
from abc import abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from smalti.tokenizer.base import DIVERGED, Terms, TrainedTokenizer, check_finite
from smalti.tokenizer.bottleneck.base import Quantized, Quantizer, Table
from smalti.tokenizer.code_autoencoder_config import CodeAutoencoderConfig
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.likelihood.base import build_likelihood
from smalti.tokenizer.network.convolutional import ConvolutionalDecoder, ConvolutionalEncoder, last_weight
from smalti.tokenizer.network_tokenizer import NetworkTokenizer


class Reconstruction(NamedTuple):
    """The cost of images given their codes, and the codes."""

    nll: Tensor  # (B,) −log p(images | z_q), nats
    quantized: Quantized
    output: Tensor  # (B, N, H, W), which the likelihood reads


class CodeAutoencoder(NetworkTokenizer, TrainedTokenizer):
    """An autoencoder of codes with any network, which `tokenizer/train.py` trains."""

    decodes_only: ClassVar[tuple[str, ...]] = ("decoder", "likelihood")

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Terms:
        nll, quantized, output = self.reconstruct(images)
        nats = nll.mean() / images[0].numel()  # a dimension
        losses = {
            "reconstruction_loss": self.likelihood.weight() * nats,
            "codebook_loss": quantized.codebook_loss,
            "commitment_loss": quantized.commitment_loss,
            "regularizer": quantized.regularizer,
        }
        return Terms(losses, {"distortion": nats / math.log(2)}, quantized.z_e, quantized, output)

    def weights(self, c: TrainConfig) -> dict[str, float]:
        return {"commitment_loss": c.commitment_weight}  # beta, on the commitment loss and only there

    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Return the cost of images given their codes, and the codes."""
        z_e = self.latents(images)
        quantized = self.quantizer(z_e.flatten(2))
        output = self.draw(quantized.z_q.unflatten(2, z_e.shape[2:]))
        return Reconstruction(self.likelihood.nll(output, images), quantized, output)

    def _encode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        z_e = self.latents(images)
        check_finite(z_e, DIVERGED)
        return self.quantizer(z_e.flatten(2)).indices

    # ------------------------------------------------------------------------------------------------------ in training

    def last_layer(self) -> Parameter:
        return last_weight(self.get_submodule("decoder"))

    def error_weight(self) -> float:
        return 1.0  # of the likelihood a nat counts as much as makes it the squared error

    def anneal(self, progress: float) -> None:
        self.quantizer.anneal(progress)

    def tables(self) -> tuple[Table, ...]:
        return self.quantizer.tables()


class ConvolutionalCodeAutoencoder(CodeAutoencoder):
    """An autoencoder of codes with the convolutional network of the VQGAN family."""

    config: CodeAutoencoderConfig

    def __init__(self, config: CodeAutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = ConvolutionalEncoder(config, config.image_channels, config.features)
        self.quantizer = self._new_quantizer()
        outputs = config.likelihood.outputs(config.image_channels)
        self.decoder = ConvolutionalDecoder(config, config.vectors, outputs)
        self.likelihood = build_likelihood(config.likelihood, config.image_channels)

    @abstractmethod
    def _new_quantizer(self) -> Quantizer:
        """Return the quantizer, its weights drawn at random."""

    def latents(self, images: Tensor) -> Tensor:
        z_e: Tensor = self.encoder(images)
        return z_e

    def draw(self, z_q: Tensor) -> Tensor:
        dtype = next(self.decoder.parameters()).dtype  # z_q is fp32 also in a model of half precision
        return self.decoder(z_q.to(dtype))
