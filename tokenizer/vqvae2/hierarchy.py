"""The bottlenecks of a VQ-VAE-2: each level quantizes its features together with what the levels above decode to.

    f_0 = encoder(x),   f_{l+1} = coarser_l(f_l)                          features, from the bottom up
    z_e_l = W_l [f_l, a_l],   z_q_l = quantize_l(z_e_l)                   from the top down
    a_l = finer_l([z_q_{l+1}, a_{l+1}]), nothing at the top               what the levels above decode to
    decoder([z_q_L, ..., z_q_0])                                          each brought up to the bottom's places

Razavi et al. (2019), https://arxiv.org/abs/1906.00446, fig. 2 and algorithm 1, for any number of levels. The losses are
the sums over levels, Σ_l |sg[z_e_l] − e_l|² and Σ_l |z_e_l − sg[e_l]|², each as in their eq. 2.

Shapes, of B samples, C channels of features and level l of (h_l, w_l) places with D_l channels:
    features (B, C, h_0, w_0), a_l (B, C, h_l, w_l), z_e_l and z_q_l (B, D_l, h_l, w_l); lists of them coarse first
    joined   (B, Σ_l D_l, h_0, w_0), what the decoder reads
    indices  (B, T), level after level, coarse first
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from smalti.tokenizer.bottleneck.base import Quantized, Quantizer, Table, build_quantizer
from smalti.tokenizer.vqvae2.config import VQVAE2Config
from smalti.tokenizer.vqvae2.network import Coarser, Finer


class Levels(NamedTuple):
    """The outputs and codes of each level, coarse first, and what the decoder reads of them."""

    z_e: list[Tensor]  # (B, D_l, h_l, w_l) not yet prepared
    quantized: list[Quantized]
    joined: Tensor  # (B, Σ_l D_l, h_0, w_0)


class Hierarchy(Quantizer):
    """The levels of codes between an encoder's features and a decoder; its lists of modules are coarse first."""

    def __init__(self, config: VQVAE2Config):
        super().__init__()
        width, attention, above = config.features, config.attention, config.quantizers[:-1]
        self.layout = config.layout
        self.coarser = nn.ModuleList(Coarser(width, attention) for _ in above)  # from the bottom up
        inputs = [0, *[width] * len(above)]  # channels of a_l: there is nothing above the top
        self.projections = nn.ModuleList(
            nn.Conv2d(width + more, each.dim, 1) for each, more in zip(config.quantizers, inputs, strict=True)
        )
        bottlenecks = [build_quantizer(each) for each in config.quantizers]
        self.bottlenecks = cast(Sequence[Quantizer], nn.ModuleList(bottlenecks))  # torch types its elements as modules
        self.finer = nn.ModuleList(
            Finer(each.dim + more, width, attention) for each, more in zip(above, inputs, strict=False)
        )

    def forward(self, z_e: Tensor) -> Quantized:
        """Return the codes of features (B, C, P): `z_q` is what the decoder reads, `z_e` (B, N) that of all levels."""
        levels = self.levels(z_e.unflatten(2, self.layout.grids[-1].shape))
        found, more = levels.quantized, range(len(levels.quantized))
        with_table = [found[level] for level in more if self.bottlenecks[level].tables()]
        return Quantized(
            z_q=levels.joined.flatten(2),
            indices=torch.cat([each.indices.flatten(1) for each in found], 1),
            codebook_loss=torch.stack([each.codebook_loss for each in found]).sum(),
            commitment_loss=torch.stack([each.commitment_loss for each in found]).sum(),
            regularizer=torch.stack([each.regularizer for each in found]).sum(),
            z_e=torch.cat([each.flatten(1) for each in levels.z_e], 1),
            stages=tuple(stage for each in with_table for stage in each.stages or (each,)),
        )

    quantize = forward  # each level prepares its own, and its distances are fp32; the networks between follow autocast

    def levels(self, features: Tensor) -> Levels:
        """Return what each level makes of features (B, C, h_0, w_0)."""
        each = [features]
        for coarser in self.coarser:
            each.insert(0, coarser(each[0]))
        z_e, quantized, z_q = list[Tensor](), list[Quantized](), list[Tensor]()
        above = each[0][:, :0]
        for level, some in enumerate(each):
            if level > 0:
                above = self.finer[level - 1](torch.cat([z_q[-1].to(above.dtype), above], 1), some.shape[2:])
            z_e.append(self.projections[level](torch.cat([some, above], 1)))
            quantized.append(self.bottlenecks[level](z_e[-1].flatten(2)))
            z_q.append(quantized[-1].z_q.unflatten(2, some.shape[2:]))
        return Levels(z_e, quantized, self.join(z_q))

    def join(self, z_q: Sequence[Tensor]) -> Tensor:
        """Return what the decoder reads, of the vectors of each level on grids of any size."""
        h, w = z_q[-1].shape[2:]
        halvings = reversed(range(len(z_q)))
        up = [
            vectors.repeat_interleave(2**n, 2).repeat_interleave(2**n, 3)
            for vectors, n in zip(z_q, halvings, strict=True)
        ]
        return torch.cat([vectors[..., :h, :w] for vectors in up], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return what the decoder reads, (B, Σ_l D_l, P), of the indices (B, T) of all levels."""
        return self.lookup_coarse(indices, len(self.bottlenecks))

    def lookup_coarse(self, indices: Tensor, levels: int) -> Tensor:
        """Return what the decoder reads of the first `levels` of indices (B, T); those below have vectors of 0."""
        z_q = []
        for level, (bottleneck, some) in enumerate(zip(self.bottlenecks, self.layout.split(indices), strict=True)):
            vectors = bottleneck.lookup((some if level < levels else torch.zeros_like(some)).flatten(1, 2))
            z_q.append((vectors if level < levels else torch.zeros_like(vectors)).unflatten(2, some.shape[1:3]))
        return self.join(z_q).flatten(2)

    # ------------------------------------------------------------------------------------------------------- codebooks

    def vectors_at(self, depth: int, codes: Tensor) -> Tensor:
        """Return the vectors (N, D_l) of codes (N,) of a codebook, the depths of a level side by side."""
        level, depth = divmod(depth, self.layout.depth)
        return self.bottlenecks[level].vectors_at(depth, codes)

    def tables(self) -> tuple[Table, ...]:
        return tuple(table for each in self.bottlenecks for table in each.tables())

    def anneal(self, progress: float) -> None:
        for each in self.bottlenecks:
            each.anneal(progress)
