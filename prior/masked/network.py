"""A bidirectional Transformer over the codes of one image, some of which are hidden.

Shapes: condition (B, ...) as `config.condition` has it; codes (B, T) int64 in [0, K); hidden (B, T) bool; logits
(B, T, V), where V is K, or the sum of the parts' sizes if a code is predicted in parts.

The input is [class, c_0, ..., c_{T-1}] with a vector of its own in the place of each hidden code. The output at a
hidden code is a distribution over it given the class and all codes that are not hidden; hidden codes are independent of
each other (Chang et al. 2022, MaskGIT, https://arxiv.org/abs/2202.04200).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.common.mixed_radix import to_digits
from smalti.prior.block import Block
from smalti.prior.code_head import CodeHead, embedding_rows
from smalti.prior.config import PriorConfig
from smalti.prior.in_passes import CodesInPasses
from smalti.prior.layers import RMSNorm, initialize
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.rotary import Turn, rotary_angles


class MaskedTransformer(CodesInPasses):
    """The network of the masked prior."""

    cos: Tensor  # (1 + T, head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T, G)
    codebooks: Tensor  # (T,)

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        a = config.architecture
        assert isinstance(a, MaskedConfig)
        self.architecture = a
        self.class_embedding = config.condition.embedding(a.dim)
        self.code_embedding = nn.Embedding(config.layout.codebooks * sum(self.vocabularies), a.dim)
        self.hidden_embedding = nn.Embedding(config.layout.codebooks, a.dim)  # of a hidden code of each
        self.place_embedding = nn.Parameter(torch.zeros(config.layout.length, a.dim))
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a.dim, a.heads, a.dropout) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config, a.dim)
        angles = rotary_angles(config.layout, a.dim // a.heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)
        self.register_buffer("codebooks", config.layout.codebook_of(), persistent=False)
        initialize(self, a.depth)
        nn.init.zeros_(self.head.weight)  # the first NLL is ln K

    def forward(self, condition: Tensor, codes: Tensor, hidden: Tensor) -> Tensor:
        """Return logits (B, T, V) fp32 of all codes; those of a hidden code depend on no hidden code but the earlier
        parts of its own."""
        digits = to_digits(codes, self.vocabularies)
        return self.head(self.features(condition, digits, hidden), digits)

    def features(self, condition: Tensor, digits: Tensor, hidden: Tensor) -> Tensor:
        """Return the features (B, T, C) that the head predicts codes from, of codes in parts (B, T, G)."""
        seen = self.code_embedding(digits + self.first_rows).sum(2)
        inputs = torch.where(hidden[..., None], self.hidden_embedding(self.codebooks), seen) + self.place_embedding
        x = self.dropout(torch.cat([self.class_embedding(condition)[:, None], inputs], dim=1))
        turn = Turn(self.cos, self.sin)
        for block in self.blocks:
            again = self.recompute and self.training
            x = checkpoint(block, x, turn, use_reentrant=False) if again else block(x, turn)
        return self.norm(x[:, 1:])
