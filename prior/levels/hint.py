"""The hint for a grid: what the codes of the grids above say of each of its places.

A small Transformer reads the codes of all grids above at once, where every place attends to every other. Its features
are brought to the grid's shape linearly along each axis, and added. So each place is told of all codes above, mostly of
those over it. (Razavi et al. 2019, https://arxiv.org/abs/1906.00446, app. A, condition the bottom's PixelCNN by
residual convolutions, whose window is as wide as there are many.)

Shapes: codes (B, T') of the grids above, P' places there; D channels; hint (B, P, C) of the P places of the grid.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.common.layout import Layout
from smalti.common.mixed_radix import to_digits
from smalti.prior.block import Block
from smalti.prior.code_head import embedding_rows
from smalti.prior.config import PriorConfig
from smalti.prior.layers import RMSNorm
from smalti.prior.levels.config import HintConfig
from smalti.prior.rotary import Turn, place_angles


class Hint(nn.Module):
    """The network that makes the hint of one grid."""

    cos: Tensor  # (P', head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T', G)

    def __init__(self, config: PriorConfig, architecture: HintConfig, grid: int, channels: int):
        """
        Args:
            config: of the whole prior.
            grid: the number of the grid that is told of those above, which are those before it.
            channels: C, of the hint.
        """
        super().__init__()
        a, self.grid = architecture, config.layout.grids[grid]
        self.above = Layout(grids=config.layout.grids[:grid])
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
        self._initialize()

    def _initialize(self) -> None:
        """Draw the initial weights, as `prior/transformer/network.py` does."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name != "place_embedding":
                nn.init.normal_(parameter, std=0.2 if "embedding" in name else 0.02)
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.data /= (2 * len(self.blocks)) ** 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Return the hint (B, P, C) of the codes (B, T') above."""
        each = self.code_embedding(to_digits(codes, self.vocabularies) + self.first_rows).sum(2)
        x = rearrange(each, "b (p q) d -> b p q d", q=self.above.depth).sum(2) + self.place_embedding
        x, turn = self.dropout(x), Turn(self.cos, self.sin)
        for block in self.blocks:
            x = block(x, turn)
        parts = zip(self.norm(x).split([grid.places for grid in self.above.grids], 1), self.above.grids, strict=True)
        brought = [linearly(part.unflatten(1, grid.shape), self.grid.shape).flatten(1, -2) for part, grid in parts]
        return self.out(torch.stack(brought).sum(0))


def linearly(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return x (B, *sides, D) interpolated linearly along each axis, (B, *shape, D)."""
    for axis, n in enumerate(shape, 1):
        weights = F.interpolate(torch.eye(x.shape[axis], device=x.device)[None], size=n, mode="linear")[0]
        x = torch.tensordot(x, weights.to(x.dtype), ([axis], [0])).movedim(-1, axis)
    return x
