"""`vq_ema`: each code follows the running mean of the encoder outputs that chose it, and has no loss of its own.

    N ← γ N + (1 − γ) n,   m ← γ m + (1 − γ) Σ z_e,   e = m / N   van den Oord et al. (2017), appendix A.1, eq. 6 to 8

with n and the sum over the z_e of one step that chose the code: K-means' M step, a little at a time. The averages are
kept in `tokenizer/codebooks/upkeep.py`, since they move once an optimizer step, not once a forward.
"""

from torch import Tensor

from smalti.tokenizer.bottleneck.base import Quantized
from smalti.tokenizer.bottleneck.config import EMAVQConfig
from smalti.tokenizer.bottleneck.vq import VectorQuantizer


@EMAVQConfig.register
class EMAVectorQuantizer(VectorQuantizer):
    """The EMA vector quantizer; its codebook (K, D) is a buffer."""

    config: EMAVQConfig

    def __init__(self, config: EMAVQConfig):
        super().__init__(config)
        codebook = self.codebook.detach()
        del self.codebook
        self.register_buffer("codebook", codebook)

    def quantize(self, z_e: Tensor) -> Quantized:
        quantized = super().quantize(z_e)
        return quantized._replace(codebook_loss=quantized.codebook_loss.detach())
