"""`residual`: Q quantizers in turn, each on what the ones before it left; a place has Q codes.

    r_0 = z_e,   e_q = quantize_q(r_q),   r_{q+1} = r_q − e_q,   z_q = Σ e_q

Lee et al. (2022, RQ-VAE), https://arxiv.org/abs/2203.01941, sec. 3.1; Zeghidour et al. (2021), https://arxiv.org/abs/2107.03312.
Q codes of K values tell K^Q vectors apart at the cost of Q searches among K. The commitment loss is RQ-VAE's eq. 7,
Σ_q |z_e − sg[e_0 + ... + e_q]|². The gradient is the chain rule through each depth's own estimator, so that straight-through
stays the identity and is not counted Q times.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from smalti.tokenizer.quantizers.base import Quantized, Quantizer, Table
from smalti.tokenizer.quantizers.config import ResidualConfig


class ResidualQuantizer(Quantizer):
    """Depth q works on r_q / scale_q, where scale_q is 1 but for the kinds whose levels are fixed.

    Where the codes are l2-normalised, z_e and the first depth's are on the sphere; what is left of them is not.
    """

    def __init__(self, config: ResidualConfig, depths: list[Quantizer]):
        super().__init__()
        self.config = config
        self.depths = cast(Sequence[Quantizer], nn.ModuleList(depths))  # torch's type says that it holds modules, not which
        self.scales = [depths[0].spacing ** q for q in range(config.code_depth)]

    def prepare(self, z_e: Tensor) -> Tensor:
        return self.depths[0].prepare(z_e)

    def quantize(self, z_e: Tensor) -> Quantized:
        zero = z_e.new_zeros(())
        stages, z_q, left, commitment_loss = [], zero, z_e, zero
        for depth, scale in zip(self.depths, self.scales, strict=True):
            stage = depth.quantize(left / scale)
            z_q = z_q + stage.z_q * scale
            left = z_e - z_q
            if depth.commits:
                commitment_loss = commitment_loss + F.mse_loss(z_e, z_q.detach())
            stages.append(stage)
        return Quantized(
            z_q=z_q,
            indices=torch.stack([stage.indices for stage in stages], dim=-1),
            codebook_loss=torch.stack([stage.codebook_loss for stage in stages]).sum(),
            commitment_loss=commitment_loss,
            regularizer=torch.stack([stage.regularizer for stage in stages]).sum(),
            z_e=z_e,
            stages=tuple(stages),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        each = zip(self.depths, self.scales, indices.unbind(-1), strict=True)
        return torch.stack([depth.lookup(codes) * scale for depth, scale, codes in each]).sum(0)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        left = vectors
        for depth, scale in zip(self.depths, self.scales, strict=True):
            depth.initialize(left / scale, generator)
            codes = depth.quantize((left / scale)[:, :, None, None]).indices
            left = left - depth.lookup(codes)[:, :, 0, 0] * scale

    def tables(self) -> tuple[Table, ...]:
        return tuple(table for depth in self.depths for table in depth.tables())

    def anneal(self, progress: float) -> None:
        for depth in self.depths:
            depth.anneal(progress)
