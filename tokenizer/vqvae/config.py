"""The settings of a VQ-VAE: its network, its bottleneck and its likelihood."""

from typing import Literal

from smalti.common.config import declared
from smalti.common.layout import Layout
from smalti.tokenizer.code_autoencoder_config import CodeAutoencoderConfig


@declared("smalti.tokenizer.vqvae.model")
class VQVAEConfig(CodeAutoencoderConfig):
    """The convolutional VQ-VAE of the VQGAN family (Esser et al. 2021, table 7)."""

    kind: Literal["vqvae"] = "vqvae"
    """a convolutional encoder, a bottleneck, a convolutional decoder"""

    @property
    def layout(self) -> Layout:
        """Return the layout of the codes of an image."""
        return Layout.of(*self.grid, depth=self.quantizer.depth, factors=self.quantizer.factors)
