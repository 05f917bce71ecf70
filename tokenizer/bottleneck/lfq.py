"""`lfq`: no codebook; a code is the signs of D numbers, K = 2^D.

Yu et al. (2023, MAGVIT-v2), https://arxiv.org/abs/2310.05737, sec. 3.1. The regularizer is their eq. 5,

    entropy_weight · (mean H[p(c | z_e)] − spread · H[mean p(c | z_e)])

with p the softmax over codes of −|z_e − c|² / temperature. That softmax is a product over bits, each a sigmoid of
4 z / temperature, so the first entropy is exact at any K without N x K numbers. The second is exact within groups of
`GROUP` bits, and for more bits the sum over groups, an upper bound that is reached when the groups are independent.

Signs are balanced only if the encoder's outputs lie around 0. Those of an untrained one do not, and bits that begin
constant stay so; hence they are whitened by their own mean and covariance, found once before training (PCA whitening).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor

from smalti.common.mixed_radix import to_digits, to_index
from smalti.common.precision import fp32
from smalti.tokenizer.bottleneck.base import Quantized, Quantizer
from smalti.tokenizer.bottleneck.config import LFQConfig
from smalti.tokenizer.bottleneck.estimators import straight_through

GROUP = 10
LEAST_VARIANCE = 1e-6  # of the largest: directions in which nothing varies are not blown up


@LFQConfig.register
class LookupFreeQuantizer(Quantizer):
    """The LFQ quantizer. Bit 0 of a code is −1, bit 1 is 1; a number that is 0 has the sign −1."""

    mean: Tensor  # (D,)
    whitening: Tensor  # (D, D)
    spacing = 0.5

    def __init__(self, config: LFQConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.bits))
        self.register_buffer("whitening", torch.eye(config.bits))

    def prepare(self, z_e: Tensor) -> Tensor:
        return torch.einsum("ij,bjp->bip", fp32(self.whitening), z_e - fp32(self.mean).view(-1, 1))

    @torch.no_grad()
    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        self.mean.copy_(vectors.mean(0))
        covariance = torch.cov(vectors.T).view(self.config.bits, -1)
        variance, axes = torch.linalg.eigh(covariance.cpu().double())  # not every accelerator has it
        self.whitening.copy_((axes / (variance + LEAST_VARIANCE * variance.amax()).sqrt()).T)

    def quantize(self, z_e: Tensor) -> Quantized:
        indices = to_index(rearrange(z_e > 0, "b d p -> b p d"), self.config.factors)
        e = self.lookup(indices)
        certain, spread = self.entropies(z_e)
        return Quantized(
            z_q=straight_through(z_e, e),
            indices=indices,
            codebook_loss=z_e.new_zeros(()),
            commitment_loss=F.mse_loss(z_e, e),
            regularizer=self.config.entropy_weight * (certain - self.config.spread * spread),
            z_e=z_e,
        )

    def entropies(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean H[p(c | z_e)] and H[mean p(c | z_e)] of z_e (B, D, P), in nats."""
        logits = 4 * rearrange(z_e, "b d p -> (b p) d") / self.config.temperature  # (N, D), of bit 1 against bit 0
        # H = ln(1 + exp x) − x σ(x), whose gradient is finite also where σ(x) is 1 to the last bit and p ln p is not
        certain = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
        spread = z_e.new_zeros(())
        for bits in logits.split(GROUP, dim=1):
            joint = bits.new_ones(len(bits), 1)
            for bit in bits.unbind(1):
                joint = torch.cat([joint * torch.sigmoid(-bit[:, None]), joint * torch.sigmoid(bit[:, None])], dim=1)
            spread = spread + torch.special.entr(joint.mean(0).clamp_min(torch.finfo(joint.dtype).tiny)).sum()
        return certain, spread

    def lookup(self, indices: Tensor) -> Tensor:
        return rearrange(to_digits(indices, self.config.factors), "b p d -> b d p").float() * 2 - 1
