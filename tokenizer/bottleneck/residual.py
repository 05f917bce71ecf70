"""`residual`: Q quantizers in turn, each on what the ones before it left; a place has Q codes.

    r_0 = z_e,   e_q = quantize_q(r_q),   r_{q+1} = r_q − e_q,   z_q = Σ e_q

Lee et al. (2022, RQ-VAE), https://arxiv.org/abs/2203.01941, sec. 3.1; Zeghidour et al. (2021),
https://arxiv.org/abs/2107.03312. Q codes of K values tell K^Q vectors apart at the cost of Q searches among K. The
commitment loss is RQ-VAE's eq. 7, Σ_q |z_e − sg[e_0 + ... + e_q]|². The gradient is the chain rule through each depth's
own estimator, so that straight-through stays the identity and is not counted Q times.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from smalti.tokenizer.bottleneck.base import Quantized, Quantizer, Table, build_quantizer
from smalti.tokenizer.bottleneck.config import ResidualConfig, TableConfig


@ResidualConfig.register
class ResidualQuantizer(Quantizer):
    """The residual quantizer. Depth q quantizes r_q / scale_q; scale_q is 1 but for the kinds whose levels are fixed.

    Where the codes are l2-normalised, z_e and the first depth's codes are on the sphere; the residuals are not.
    """

    def __init__(self, config: ResidualConfig):
        super().__init__()
        plain = {"normalize": False} if isinstance(config.each, TableConfig) else {}  # residuals leave the sphere
        rest = [build_quantizer(config.each.model_copy(update=plain)) for _ in range(1, config.code_depth)]
        depths = [build_quantizer(config.each), *rest]
        self.config = config
        self.depths = cast(Sequence[Quantizer], nn.ModuleList(depths))  # torch types its elements as plain modules
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
            if self.config.each.commits:
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

    def vectors_at(self, depth: int, codes: Tensor) -> Tensor:
        return self.depths[depth].vectors_at(0, codes) * self.scales[depth]

    @torch.no_grad()
    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        left = vectors
        for depth, scale in zip(self.depths, self.scales, strict=True):
            depth.initialize(left / scale, generator)
            codes = depth.quantize((left / scale)[:, :, None]).indices
            left = left - depth.lookup(codes)[:, :, 0] * scale

    def tables(self) -> tuple[Table, ...]:
        return tuple(table for depth in self.depths for table in depth.tables())

    def anneal(self, progress: float) -> None:
        for depth in self.depths:
            depth.anneal(progress)
