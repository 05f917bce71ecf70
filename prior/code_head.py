"""The head of a prior: from its features to a distribution over the next code.

Shapes: x (B, T, C); logits (B, T, V), where V is the sum of the sizes V_1, ..., V_G of a code's parts; digits
(B, T, G), part g in [0, V_g). Each codebook, one for each depth of each grid, has its own matrix.

Mostly G is 1 and V is K. If K is large and a code has several digits, p(code) = Π_g p(part g | parts before): a small
residual network adds the parts before to the features, and part g is predicted from them. So 2^18 codes cost 1,280 rows
of logits instead of 262,144, and the sequence gets no longer. (Luo et al. 2024, Open-MAGVIT2,
https://arxiv.org/abs/2409.04410, sec. 3.2, factorise for the same reason.)
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.common.layout import Layout
from smalti.common.mixed_radix import to_digits
from smalti.common.tensors import shapes_only
from smalti.prior.config import PriorConfig
from smalti.prior.layers import RMSNorm, SwiGLU, hidden_width


class CodeHead(nn.Module):
    """The logits of codes in parts, from features of `dim` channels (C)."""

    def __init__(self, config: PriorConfig, dim: int):
        super().__init__()
        self.sizes, self.layout = config.vocabularies, config.layout
        self.weight = nn.Parameter(torch.empty(config.layout.codebooks * sum(self.sizes), dim))
        later = range(1, len(self.sizes))
        self.part_embedding = nn.ModuleList(nn.Embedding(size, dim) for size in self.sizes[:-1])
        self.part_norm = nn.ModuleList(RMSNorm(dim) for _ in later)
        self.part_mlp = nn.ModuleList(SwiGLU(dim, hidden_width(dim)) for _ in later)

    def forward(self, x: Tensor, digits: Tensor, order: Tensor | None = None) -> Tensor:
        """Return the logits of all parts, each given the true parts before it (teacher forcing).

        They are fp32, also under autocast: rounding a logit of 10 to bf16 changes it by up to 0.03 nats.

        Args:
            order: (B, T), the place of the sequence at which each code stands; by default raster order.
        """
        parts = [self.part(x, digits[..., :g].unbind(-1), order) for g in range(len(self.sizes))]
        return torch.cat(parts, dim=-1)

    def part(self, x: Tensor, before: Sequence[Tensor], order: Tensor | None = None) -> Tensor:
        """Return the logits (B, T, V_g) fp32 of the part that follows the parts before, each (B, T)."""
        seen = self.after(x, before)
        with _no_autocast(x.device):
            matrices = self.matrices()[len(before)].float()
            if order is None or len(self.layout.grids) == 1:  # in every order the depths of a place stay side by side
                return _per_codebook(seen.float(), matrices, self.layout)
            logits = _per_codebook(seen.float().gather(1, _wide(order.argsort(1), seen)), matrices, self.layout)
            return logits.gather(1, _wide(order, logits))

    def matrices(self) -> tuple[Tensor, ...]:
        """Return the matrices of each part, (codebooks, V_g, C)."""
        return self.weight.view(self.layout.codebooks, sum(self.sizes), -1).split(self.sizes, dim=1)

    def after(self, x: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Return the features x (..., C) with the parts before, each (...), added."""
        if not before:
            return x
        seen = x
        for embedding, digit in zip(self.part_embedding, before, strict=False):
            seen = seen + embedding(digit)
        g = len(before) - 1
        return x + self.part_mlp[g](self.part_norm[g](seen))


def _no_autocast(device: torch.device) -> AbstractContextManager:
    kind = device.type  # the meta device has no autocast
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _wide(order: Tensor, x: Tensor) -> Tensor:
    """Return an order (B, T) as an index of x (B, T, C) along the sequence."""
    return order[..., None].expand(-1, -1, x.shape[2])


def _per_codebook(x: Tensor, matrices: Tensor, layout: Layout) -> Tensor:
    """Return the product of x (B, T, C) with the matrix of each codebook, (codebooks, V, C), as (B, T, V)."""
    if len(layout.grids) == 1:
        return _per_depth(x, matrices)
    of_grids = matrices.split([grid.depth for grid in layout.grids])
    parts = zip(x.split([grid.length for grid in layout.grids], 1), of_grids, strict=True)
    return torch.cat([_per_depth(part, of_grid) for part, of_grid in parts], dim=1)


def _per_depth(x: Tensor, matrices: Tensor) -> Tensor:
    """Return the product of x (B, n · Q, C) with the matrix of each depth, (Q, V, C), as (B, n · Q, V)."""
    y = torch.bmm(rearrange(x, "b (n q) c -> q (b n) c", q=len(matrices)), matrices.transpose(1, 2))
    return rearrange(y, "q (b n) v -> b (n q) v", b=len(x))


def nll_each(logits: Tensor, codes: Tensor, vocabularies: Sequence[int]) -> Tensor:
    """Return −log p of each code (B, T) in nats, summed over its parts, from logits (B, T, V)."""
    digits = to_digits(codes, vocabularies).flatten(0, 1).unbind(-1)
    parts = logits.float().flatten(0, 1).split(list(vocabularies), dim=-1)  # (B T, V_g): twice as fast as (B, V_g, T)
    each = [F.cross_entropy(part, digit, reduction="none") for part, digit in zip(parts, digits, strict=True)]
    return torch.stack(each).sum(0).view(codes.shape)


def embedding_rows(config: PriorConfig) -> Tensor:
    """Return where the rows of part g of the codes at place t begin in the embedding table, (T, G)."""
    if shapes_only():
        return torch.empty(config.layout.length, len(config.vocabularies), dtype=torch.int64)
    sizes = torch.tensor(config.vocabularies)
    return config.layout.codebook_of()[:, None] * sizes.sum() + sizes.cumsum(0) - sizes
