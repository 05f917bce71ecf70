"""`vq`: nearest neighbour in a codebook that learns by the codebook loss.

    L = L_rec + |sg[z_e] − e|² + β |z_e − sg[e]|²    van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3

The decoder's gradient reaches z_e straight through, or by rotation. Low-dimensional, l2-normalised codes: Yu et al.
(2021), https://arxiv.org/abs/2110.04627, sec. 3.2. This is the lecture's K-means with an encoder before it: the
codebook loss is the M step by gradient, `nearest_indices` the E step.
"""

from torch import Tensor

from smalti.tokenizer.bottleneck.base import Quantized
from smalti.tokenizer.bottleneck.config import NearestConfig, VQConfig
from smalti.tokenizer.bottleneck.estimators import ESTIMATORS
from smalti.tokenizer.bottleneck.losses import codebook_and_commitment
from smalti.tokenizer.bottleneck.table import TableQuantizer


@VQConfig.register
class VectorQuantizer(TableQuantizer):
    """The plain vector quantizer; its codebook (K, D) is a parameter."""

    config: NearestConfig

    def quantize(self, z_e: Tensor) -> Quantized:
        indices = self.nearest(z_e)
        e = self.lookup(indices)
        codebook_loss, commitment_loss = codebook_and_commitment(z_e, e)
        return Quantized(
            z_q=ESTIMATORS[self.config.gradient](z_e, e),
            indices=indices,
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss,
            regularizer=z_e.new_zeros(()),
            z_e=z_e,
        )
