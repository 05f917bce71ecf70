"""A block-causal Transformer over the codes of one grid in sets of places, a set a group of `prior/groups/`.

Shapes: as of `prior/groups/transformer.py`; slots stand in the order of the sets.

A slot predicts the code of its place, the target. Beside the class and an embedding of the target, slot j of a set
reads the code of slot j of the set before, if there is one, with an embedding of that code's own place. Sets never get
smaller, so that every code is read in the next set, and by attention reaches all slots of that set and of later ones.
Queries are turned by the target, keys by the place of the code that is read, or by the target where none is.

(Sets in any order with one Transformer: Liu et al. 2024, SAR, https://arxiv.org/abs/2410.10511. Codes far apart depend
little on each other and may be drawn together: Wang et al. 2024, PAR, https://arxiv.org/abs/2412.15119.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.prior.attention import masked_attention
from smalti.prior.config import PriorConfig
from smalti.prior.groups.model import GroupPrior
from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.nextset.sets import places_in_order, set_sizes
from smalti.prior.rotary import Turn


class NextSetTransformer(GroupPrior):
    """The network of the next-set prior, in the plain form that trains."""

    target: Tensor  # (P,), the place of each slot
    slot_of: Tensor  # (P,), the slot of each place
    own: Tensor  # (P,), the place of the code that each slot reads, or its target where it reads none
    hidden: Tensor  # (P, P), −∞ where a slot must not see another

    def __init__(self, config: PriorConfig):
        a = config.architecture
        assert isinstance(a, NextSetConfig)
        super().__init__(config, a)
        places = config.layout.places
        self.target_embedding = nn.Parameter(torch.zeros(places, a.dim))  # of the place to predict
        self.own_embedding = nn.Parameter(torch.zeros(places, a.dim))  # of the place of a code that is read
        self.build(set_sizes(places, a.passes))
        target = places_in_order(config.layout.grids[0], a.order)
        own = list(target)
        for before, after in zip(self.groups, self.groups[1:], strict=False):
            own[after.start : after.start + before.stop - before.start] = target[before]
        slot_of = sorted(range(places), key=target.__getitem__)
        for name, table in (("target", target), ("slot_of", slot_of), ("own", own)):
            self.register_buffer(name, torch.tensor(table), persistent=False)
        later = self.group_of > self.group_of[:, None]
        self.register_buffer("hidden", torch.zeros(places, places).masked_fill(later, -torch.inf), persistent=False)

    def places(self) -> Tensor:
        return self.target_embedding[self.target]

    def embedded(self, codes: Tensor, first: int = 0) -> Tensor:
        found = super().embedded(codes, first)
        return found + self.own_embedding[self.target[first : first + found.shape[1]]]

    def spread(self, read: Tensor) -> Tensor:
        of_sets = [read[:, :0], *read.split(self.lengths[:-1], 1)]  # the first reads nothing
        padded = [F.pad(each, (0, 0, 0, n - each.shape[1])) for each, n in zip(of_sets, self.lengths, strict=True)]
        return torch.cat(padded, 1)

    def with_read(self, x: Tensor, read: Tensor, group: int) -> Tensor:
        if group:
            x[:, : self.lengths[group - 1]] += read[:, self.groups[group - 1]]
        return x

    def codebook(self, group: int) -> int:
        return 0

    def ordered(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.target)

    def placed(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.slot_of)

    def turns(self) -> tuple[Turn, Turn]:
        return Turn(self.cos[self.target], self.sin[self.target]), Turn(self.cos[self.own], self.sin[self.own])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return masked_attention(q, k, v, self.hidden)
