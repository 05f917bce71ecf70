"""A causal Transformer over the codes of one image, with the class as its first input.

Shapes: condition (B, ...) as `config.condition` has it; codes (B, T) int64 in [0, K), in raster order, the Q
codes of a place side by side; logits (B, T, V), where V is K, or the sum of the parts' sizes if a code is predicted in
parts; order (B, T), the place of the sequence that each step predicts.

The input is [class, c_0, ..., c_{T-2}], the output a distribution over c_0, ..., c_{T-1}: log p(codes | class) is the
sum of their log-probabilities, the rate term of the lecture's ELBO. Each codebook, one for each depth of each grid, has
its own embeddings and head.

An embedding of the place to predict is added to each input. Queries are turned by that place, keys by the place of
their own code. So the same weights can predict the places in any order; the input is then
[class, c_{o_0}, c_{o_1}, ...].
(Target-aware positions: Yu et al. 2024, RAR, sec. 3.2.) A hint of that place, (B, P, C), is added beside it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.common.mixed_radix import to_digits
from smalti.prior.autoregressive import HintedPrior
from smalti.prior.code_head import CodeHead, embedding_rows
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.layers import RMSNorm, initialize
from smalti.prior.rotary import Turn, rotary_angles
from smalti.prior.transformer.config import TransformerConfig
from smalti.prior.transformer.layers import Block


class CausalTransformer(HintedPrior):
    """The network of the Transformer prior, in the plain form that trains."""

    cos: Tensor  # (1 + T, head_dim / 2), of the angles by which places are turned
    sin: Tensor
    first_rows: Tensor  # (T, G)

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        a = config.architecture
        assert isinstance(a, TransformerConfig)
        self.architecture = a
        self.class_embedding = config.condition.embedding(a.dim)
        self.code_embedding = nn.Embedding(config.layout.codebooks * sum(self.vocabularies), a.dim)
        self.target_embedding = nn.Parameter(torch.zeros(config.layout.length, a.dim))  # of the place to predict
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.norm = RMSNorm(a.dim)
        self.head = CodeHead(config, a.dim)
        angles = rotary_angles(config.layout, a.head_dim)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("first_rows", embedding_rows(config), persistent=False)
        self.recompute = False  # set in training: blocks compute their activations again in the backward pass
        initialize(self, a.depth)
        nn.init.zeros_(self.head.weight)  # the first NLL is ln K

    @property
    def hint_dim(self) -> int:
        return self.architecture.dim

    def forward(
        self, condition: Tensor, codes: Tensor, order: Tensor | None = None, hint: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, T, V) fp32 of the codes in the order given, by default in raster order.

        logits[:, n] depends on the condition, the n codes before it, the earlier parts of its own code, and the hints
        of its place and of those before.
        """
        ordered = codes if order is None else codes.gather(1, order)
        x = self.dropout(self.inputs(condition, ordered[:, :-1], order, hint))
        target, own = self.turns(order)
        for block in self.blocks:
            again = self.recompute and self.training
            x = checkpoint(block, x, target, own, use_reentrant=False) if again else block(x, target, own)
        return self.head(self.norm(x), to_digits(ordered, self.vocabularies), order)

    def inputs(self, condition: Tensor, ordered: Tensor, order: Tensor | None, hint: Tensor | None = None) -> Tensor:
        """Return the inputs (B, n + 1, C) of the first n + 1 steps, from condition (B, ...) and n codes in order."""
        n = ordered.shape[1]
        first_rows: Tensor = self.first_rows
        wanted: Tensor = self.target_embedding
        if order is not None:
            first_rows, wanted = first_rows[order], wanted[order]
        rows = to_digits(ordered, self.vocabularies) + first_rows[..., :n, :]  # (B, n, G)
        x = torch.cat([self.class_embedding(condition)[:, None], self.code_embedding(rows).sum(2)], dim=1)
        if hint is not None:
            wanted = wanted + self.hint_of_steps(hint, order)
        return x + wanted[..., : n + 1, :]

    def input_of_step(self, n: int, condition: Tensor, code: Tensor, hint: Tensor | None = None) -> Tensor:
        """Return the input (B, C) of step n in raster order, row n of `inputs`; `code` (B,) is the one before."""
        wanted: Tensor = self.target_embedding[n]
        if hint is not None:
            wanted = wanted + hint[:, n // self.config.layout.depth]
        if n == 0:
            return self.class_embedding(condition) + wanted
        rows = to_digits(code, self.vocabularies) + self.first_rows[n - 1]  # (B, G)
        return self.code_embedding(rows).sum(1) + wanted

    def hint_of_steps(self, hint: Tensor, order: Tensor | None) -> Tensor:
        """Return the hint of the place that each step predicts, (B, T, C), of a hint (B, P, C)."""
        deep = hint.repeat_interleave(self.config.layout.depth, 1)
        return deep if order is None else deep.gather(1, order[..., None].expand_as(deep))

    def turns(self, order: Tensor | None) -> tuple[Turn, Turn]:
        """Return the turns of all queries, by the place to predict, and of all keys, by the input's own place."""
        if order is None:
            return Turn(self.cos[1:], self.sin[1:]), Turn(self.cos[:-1], self.sin[:-1])
        target, own = ((self.cos[rows][:, None], self.sin[rows][:, None]) for rows in (1 + order, own_rows(order)))
        return Turn(*target), Turn(*own)

    def matrices(self) -> list[nn.Parameter]:
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def prepare(self, c: TrainConfig) -> None:
        super().prepare(c.model_copy(update={"recompute": False}))
        self.recompute = c.recompute


def own_rows(order: Tensor) -> Tensor:
    """Return the row of each step's input in the table of angles, (B, T): the class, then the codes in order."""
    return F.pad(1 + order[:, :-1], (1, 0))
