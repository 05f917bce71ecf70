"""A Transformer over the codes of one image in groups of places, each predicted at once given those before.

Shapes: condition (B, ...) as `config.condition` has it; codes (B, T) int64 in [0, K), the Q codes of a place side by
side; P places in all groups, n in one; logits (B, T, V), where V is K, or the sum of the parts' sizes if a code is
predicted in parts.

There is a slot for each place, in the order of the groups; a kind says which place is where. The input of a slot is the
class, what the kind says of the slot, and what it reads of the codes of earlier groups. A slot attends to its own group
and to those before. So the output at the slots of a group is a distribution over its codes given the class and the
groups before, and they are independent of each other:

    log p(codes | class) = Σ_g Σ_i log p(code_{g,i} | groups before g, class)

The class is added to the input of every slot: all slots see it from the first block on, and no token for it is computed
or cached.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.common.mixed_radix import to_digits
from smalti.prior.attention import block_causal_attention
from smalti.prior.block import Block
from smalti.prior.code_head import CodeHead, embedding_rows
from smalti.prior.config import PriorConfig
from smalti.prior.in_passes import CodesInPasses
from smalti.prior.layers import RMSNorm, initialize
from smalti.prior.rotary import Turn, place_angles


class Sizes(Protocol):
    """The settings that the network is built by."""

    @property
    def depth(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def dropout(self) -> float: ...


class GroupTransformer(CodesInPasses):
    """The network of a prior over groups, in the plain form that trains.

    A kind adds its embeddings of places after this constructor, and then calls `build`.
    """

    cos: Tensor  # (P, head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T, G)
    group_of: Tensor  # (P,), the number of each slot's group

    def __init__(self, config: PriorConfig, sizes: Sizes):
        super().__init__(config)
        self.architecture = sizes
        self.code_depth = config.layout.depth
        self.class_embedding = config.condition.embedding(sizes.dim)
        self.code_embedding = nn.Embedding(config.layout.codebooks * sum(self.vocabularies), sizes.dim)

    def build(self, lengths: Sequence[int]) -> None:
        """Add blocks, head and tables for groups of so many places, and draw the initial weights."""
        a, config = self.architecture, self.config
        self.lengths = list(lengths)
        ends = list(accumulate(self.lengths))
        self.groups = [slice(end - n, end) for n, end in zip(self.lengths, ends, strict=True)]  # the slots of each
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a.dim, a.heads, a.dropout) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config, a.dim)
        angles = place_angles(config.layout, a.dim // a.heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)
        group_of = torch.tensor([g for g, n in enumerate(self.lengths) for _ in range(n)])
        self.register_buffer("group_of", group_of, persistent=False)
        initialize(self, a.depth)
        nn.init.zeros_(self.head.weight)  # the first NLL is ln K

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def places(self) -> Tensor:
        """Return what the inputs say of each slot, (P, C)."""

    @abstractmethod
    def spread(self, read: Tensor) -> Tensor:
        """Return what each slot reads, (B, P, C), of the vectors (B, n, C) of all groups but the last."""

    @abstractmethod
    def with_read(self, x: Tensor, read: Tensor, group: int) -> Tensor:
        """Return the inputs x (R, n, C) of a group with what they read of vectors (R, P, C). May overwrite x."""

    @abstractmethod
    def codebook(self, group: int) -> int:
        """Return the codebook of the first code of a group's places; those of the other depths follow it."""

    def ordered(self, x: Tensor) -> Tensor:
        """Return what is given of each place, (B, P, ...), in the order of the slots."""
        return x

    def placed(self, x: Tensor) -> Tensor:
        """Return what is given of each slot, (B, P, ...), in the order of the places: the inverse of `ordered`."""
        return x

    def turns(self) -> tuple[Turn, Turn]:
        """Return the turns of the queries and of the keys of all slots."""
        turn = Turn(self.cos, self.sin)
        return turn, turn

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of each slot to its own group and to those before, (B, heads, P, d)."""
        return block_causal_attention(q, k, v, self.lengths)

    # ----------------------------------------------------------------------------------------------- what follows of it

    def forward(self, condition: Tensor, codes: Tensor) -> Tensor:
        """Return logits (B, T, V) fp32 of all codes.

        Those of a group depend on the condition, the codes of earlier groups, and the earlier parts of their own code.
        """
        features = self.placed(self.features(condition, codes))
        if self.code_depth > 1:
            features = features.repeat_interleave(self.code_depth, 1)
        return self.head(features, to_digits(codes, self.vocabularies))

    def features(self, condition: Tensor, codes: Tensor) -> Tensor:
        """Return the features (B, P, C) of each slot that the head predicts the codes of its place from."""
        known = self.groups[-1].start * self.code_depth  # no slot reads the last group
        read = self.spread(self.embedded(self.codes_ordered(codes)[:, :known]))
        x = self.dropout(self.class_embedding(condition)[:, None] + self.places() + read)
        queries, keys = self.turns()
        for block in self.blocks:
            again = self.recompute and self.training
            args = (x, queries, self.attend, keys)
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        return self.norm(x)

    def embedded(self, codes: Tensor, first: int = 0) -> Tensor:
        """Return the vector that is read of each slot, (B, n, C), of the codes (B, n · Q) of slots from `first` on: the
        sum of the embeddings of its Q codes."""
        start = first * self.code_depth
        digits = codes[..., None] if len(self.vocabularies) == 1 else to_digits(codes, self.vocabularies)
        parts = self.code_embedding(digits + self.first_rows[start : start + codes.shape[1]]).flatten(1, 2)
        each = self.code_depth * len(self.vocabularies)
        return parts if each == 1 else parts.unflatten(1, (-1, each)).sum(2)

    def codes_ordered(self, x: Tensor) -> Tensor:
        """Return what is given of each code, (B, T, ...), in the order of the slots."""
        return self.ordered(x.unflatten(1, (-1, self.code_depth))).flatten(1, 2)

    def codes_placed(self, x: Tensor) -> Tensor:
        """Return what is given of each code in the order of the slots, (B, T, ...), in the order of the places."""
        return self.placed(x.unflatten(1, (-1, self.code_depth))).flatten(1, 2)
