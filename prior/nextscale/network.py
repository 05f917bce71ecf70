"""A block-causal Transformer over the grids of one image, coarse first: each grid is a group of `prior/groups/`.

Shapes: as of `prior/groups/transformer.py`; the codes of a sample stand grid after grid, so that slot i is place i.

The input is a vector a place: the class, the place, its scale, and the embeddings of the codes of all coarser grids,
linearly interpolated to that place. A place attends to its own grid and to coarser ones. (Tian et al. 2024, VAR,
https://arxiv.org/abs/2404.02905, sec. 3.2.)
"""

import torch
from torch import Tensor, nn

from smalti.prior.config import PriorConfig
from smalti.prior.groups.model import GroupPrior
from smalti.prior.interpolation import interpolation
from smalti.prior.nextscale.config import NextScaleConfig


class NextScaleTransformer(GroupPrior):
    """The network of the next-scale prior, in the plain form that trains."""

    interpolation: Tensor  # (P, P)

    def __init__(self, config: PriorConfig):
        a = config.architecture
        assert isinstance(a, NextScaleConfig)
        super().__init__(config, a)
        self.scale_embedding = nn.Embedding(len(config.layout.grids), a.dim)
        self.place_embedding = nn.Parameter(torch.zeros(config.layout.places, a.dim))
        self.build([grid.places for grid in config.layout.grids])
        self.register_buffer("interpolation", interpolation(config.layout), persistent=False)

    def places(self) -> Tensor:
        return self.place_embedding + self.scale_embedding(self.group_of)

    def spread(self, read: Tensor) -> Tensor:
        return self.interpolation[:, : read.shape[1]] @ read

    def with_read(self, x: Tensor, read: Tensor, group: int) -> Tensor:
        places, first = self.groups[group], self.groups[group].start
        if not first:
            return x
        return torch.baddbmm(x, self.interpolation[places, :first].expand(len(x), -1, -1), read[:, :first])

    def codebook(self, group: int) -> int:
        return group * self.code_depth
