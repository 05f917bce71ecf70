"""A block-causal Transformer over the grids of one image, coarse first.

Shapes: condition (B, ...) as `config.condition` has it; codes (B, T) int64 in [0, K), grid after grid, the Q codes of a
place side by side; P places in all grids, n in one; logits (B, T, V), where V is K, or the sum of the parts' sizes if a
code is predicted in parts.

The input is a vector a place: the class, the place, its scale, and the embeddings of the codes of all coarser grids,
linearly interpolated to that place. A place attends to its own grid and to coarser ones. So the output at the places of
a grid is a distribution over its codes given the class and the coarser grids, and they are independent of each other:

    log p(codes | class) = Σ_s Σ_i log p(code_{s,i} | grids before s, class)

(Tian et al. 2024, VAR, https://arxiv.org/abs/2404.02905, sec. 3.2.) The class is added to the input of every place: all
places see it from the first block on, and no token for it is computed or cached.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.common.errors import UserError
from smalti.common.mixed_radix import to_digits
from smalti.prior.block import Block
from smalti.prior.code_head import CodeHead, embedding_rows
from smalti.prior.config import PriorConfig
from smalti.prior.in_passes import CodesInPasses
from smalti.prior.interpolation import interpolation, spans
from smalti.prior.layers import RMSNorm, initialize
from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.rotary import Turn, place_angles


class NextScaleTransformer(CodesInPasses):
    """The network of the next-scale prior, in the plain form that trains."""

    cos: Tensor  # (P, head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T, G)
    interpolation: Tensor  # (P, P)
    scale_of: Tensor  # (P,), the number of each place's grid

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        check_several(config)
        a = config.architecture
        assert isinstance(a, NextScaleConfig)
        self.architecture = a
        self.code_depth = config.layout.depth
        self.scales = spans(config.layout)  # the places of each grid
        self.lengths = [grid.places for grid in config.layout.grids]
        self.class_embedding = config.condition.embedding(a.dim)
        self.code_embedding = nn.Embedding(config.layout.codebooks * sum(self.vocabularies), a.dim)
        self.scale_embedding = nn.Embedding(len(self.scales), a.dim)
        self.place_embedding = nn.Parameter(torch.zeros(config.layout.places, a.dim))
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a.dim, a.heads, a.dropout) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config, a.dim)
        angles = place_angles(config.layout, a.dim // a.heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)
        self.register_buffer("interpolation", interpolation(config.layout), persistent=False)
        scale_of = torch.tensor([s for s, n in enumerate(self.lengths) for _ in range(n)])
        self.register_buffer("scale_of", scale_of, persistent=False)
        initialize(self, a.depth)
        nn.init.zeros_(self.head.weight)  # the first NLL is ln K

    def forward(self, condition: Tensor, codes: Tensor) -> Tensor:
        """Return logits (B, T, V) fp32 of all codes.

        Those of a grid depend on the condition, the codes of coarser grids, and the earlier parts of their own code.
        """
        features = self.features(condition, codes)
        if self.code_depth > 1:
            features = features.repeat_interleave(self.code_depth, 1)
        return self.head(features, to_digits(codes, self.vocabularies))

    def features(self, condition: Tensor, codes: Tensor) -> Tensor:
        """Return the features (B, P, C) that the head predicts the codes of each place from."""
        coarser = self.scales[-1].start  # no place reads the last grid
        read = self.interpolation[:, :coarser] @ self.embedded(codes[:, : coarser * self.code_depth])
        x = self.dropout(self.class_embedding(condition)[:, None] + self.places() + read)
        turn = Turn(self.cos, self.sin)
        for block in self.blocks:
            again = self.recompute and self.training
            args = (x, turn, self.lengths)
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        return self.norm(x)

    def places(self) -> Tensor:
        """Return what the inputs say of each place, (P, C)."""
        return self.place_embedding + self.scale_embedding(self.scale_of)

    def embedded(self, codes: Tensor, first: int = 0) -> Tensor:
        """Return the sum of the embeddings of the Q codes of each place, (B, n, C), of codes (B, n · Q) from place
        `first` on."""
        start = first * self.code_depth
        digits = codes[..., None] if len(self.vocabularies) == 1 else to_digits(codes, self.vocabularies)
        parts = self.code_embedding(digits + self.first_rows[start : start + codes.shape[1]]).flatten(1, 2)
        each = self.code_depth * len(self.vocabularies)
        return parts if each == 1 else parts.unflatten(1, (-1, each)).sum(2)


def check_several(config: PriorConfig) -> None:
    """Raise `UserError` unless the codes of a sample lie on several grids."""
    layout, kind = config.layout, config.architecture.name()
    if len(layout.grids) == 1:
        raise UserError(
            f"model.kind {kind} predicts each grid from the coarser ones and needs several, coarse first; a sample is "
            f"{layout}, one grid: take --model.kind masked, or a tokenizer of several grids"
        )
