"""The hint for a grid: what the codes of the grids above say of each of its places.

A small Transformer reads the codes of all grids above at once, where every place attends to every other. Its features
are brought to the grid's shape linearly along each axis, and added. So each place is told of all codes above, mostly of
those over it. (Razavi et al. 2019, https://arxiv.org/abs/1906.00446, app. A, condition the bottom's PixelCNN by
residual convolutions, whose window is as wide as there are many.)

Shapes: codes (B, T') of the grids above, P' places there; D channels; hint (B, P, C) of the P places of the grid.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from smalti.common.layout import Layout
from smalti.common.mixed_radix import to_digits
from smalti.prior.block import Block
from smalti.prior.code_head import embedding_rows
from smalti.prior.config import PriorConfig
from smalti.prior.interpolation import interpolation
from smalti.prior.layers import RMSNorm, initialize
from smalti.prior.levels.config import HintConfig
from smalti.prior.rotary import Turn, place_angles


class Hint(nn.Module):
    """The network that makes the hint of one grid."""

    cos: Tensor  # (P', head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T', G)
    interpolation: Tensor  # (P, P')

    def __init__(self, config: PriorConfig, architecture: HintConfig, grid: int, channels: int):
        """
        Args:
            config: of the whole prior.
            grid: the number of the grid that is told of those above, which are those before it.
            channels: C, of the hint.
        """
        super().__init__()
        a, grids = architecture, config.layout.grids
        self.above = Layout(grids=grids[:grid])
        self.vocabularies = config.vocabularies
        self.code_embedding = nn.Embedding(self.above.codebooks * sum(self.vocabularies), a.dim)
        self.place_embedding = nn.Parameter(torch.zeros(self.above.places, a.dim))
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a.dim, a.heads, a.dropout) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.out = nn.Linear(a.dim, channels, bias=False)
        angles = place_angles(self.above, a.dim // a.heads)
        first_rows = embedding_rows(config.model_copy(update={"layout": self.above}))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", first_rows, persistent=False)
        P = self.above.places
        between = interpolation(Layout(grids=grids[: grid + 1]))[P:, :P]  # sums the grids above, each interpolated
        self.register_buffer("interpolation", between, persistent=False)
        initialize(self, a.depth)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the hint (B, P, C) of the codes (B, T') above."""
        each = self.code_embedding(to_digits(codes, self.vocabularies) + self.first_rows).sum(2)
        x = rearrange(each, "b (p q) d -> b p q d", q=self.above.depth).sum(2) + self.place_embedding
        x, turn = self.dropout(x), Turn(self.cos, self.sin)
        for block in self.blocks:
            x = block(x, turn)
        return self.out(self.interpolation @ self.norm(x))
