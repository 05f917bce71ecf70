"""The Transformer one step at a time, on cached keys and values.

R rows (images, or twice as many under guidance): x (R, C) fp32; queries (R, heads, d), keys and values (R, key_heads,
d). The cache holds keys and values (R, key_heads, T, d) of each layer, at full length from the start.

Step n reads the code of step n − 1 (step 0 the class) and predicts the one of step n. `prefill` reads the inputs of
many steps at once, `step` one. Both compute what `prior.transformer.network` computes, with the blocks laid out as
`prior.fast.blocks` says; the queries that share a key are the rows of one attention, so no key is copied.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from smalti.prior.fast.blocks import CachedBlocks
from smalti.prior.sampling_config import Precision
from smalti.prior.transformer.layers import causal_attention
from smalti.prior.transformer.network import CausalTransformer

ALIGNED = 8  # the cache's length is a multiple of it, as CUDA's attention needs for a mask


class Step(Protocol):
    """The number of a step: it reads the step's row of a table, and the step's part of the cache."""

    def read(self, table: Tensor) -> Tensor:
        """Return the row (...) of this step in a table (T, ...)."""

    def write(self, table: Tensor, row: Tensor) -> None:
        """Put the row of this step into a table (T, ...)."""

    def remember(self, cache: Tensor, new: Tensor) -> Tensor:
        """Put new (R, key_heads, d) into the cache (R, key_heads, T, d), and return the part to attend to."""

    def mask(self) -> Tensor | None:
        """Return which places of that part are written, or None if all are."""


class NumberedStep:
    """Step n, where n is a Python number: it attends to the written part of the cache, a slice."""

    def __init__(self, n: int):
        self.n = n

    def read(self, table: Tensor) -> Tensor:
        return table.select(0, self.n)

    def write(self, table: Tensor, row: Tensor) -> None:
        table.select(0, self.n).copy_(row)

    def remember(self, cache: Tensor, new: Tensor) -> Tensor:
        cache.select(2, self.n).copy_(new)
        return cache.narrow(2, 0, self.n + 1)

    def mask(self) -> None:
        return None


class CountedStep:
    """Step n, where n (1,) is on the device for captured graphs: it attends to the first `length` places, masked."""

    def __init__(self, n: Tensor, length: int):
        self.n, self.length = n, length

    def read(self, table: Tensor) -> Tensor:
        return table.index_select(0, self.n)[0]

    def write(self, table: Tensor, row: Tensor) -> None:
        table.index_copy_(0, self.n, row[None])

    def remember(self, cache: Tensor, new: Tensor) -> Tensor:
        cache.index_copy_(2, self.n, new[:, :, None].to(cache.dtype))
        return cache[:, :, : self.length]

    def mask(self) -> Tensor:
        return (torch.arange(self.length, device=self.n.device) <= self.n)[None, None, None]


class CachedTransformer(CachedBlocks):
    """The Transformer that computes one step at a time. It takes the weights as they are when it is made."""

    def __init__(self, prior: CausalTransformer, rows: int, precision: Precision):
        """
        Args:
            rows: of a step and of the cache.
            precision: of the weights, fp32, bf16 or int8, and with bf16 of the cache.
        """
        a, slots = prior.architecture, -(-prior.config.layout.length // ALIGNED) * ALIGNED
        super().__init__(prior, (a.heads, a.key_heads), rows, slots, precision)

    def turns(self, target: Tensor, own: Tensor) -> Tensor:
        """Return the turns of queries and keys, (N, heads + key_heads, d / 2).

        Args:
            target, own: (N,) the places to predict and the inputs' own places, as rows of the table of angles.
        """
        queries = self.angles.index_select(0, target)[:, None].expand(-1, self.heads, -1)
        keys = self.angles.index_select(0, own)[:, None].expand(-1, self.key_heads, -1)
        return torch.cat([queries, keys], dim=1)

    def step(self, x: Tensor, turns: Tensor, step: Step) -> Tensor:
        """Return the features (R, C) for the head, from the inputs x (R, C) of a step and their turns. Overwrites x."""
        mask = step.mask()
        for layer in self.layers:
            q, k, v = self.qkv(layer, x, turns)
            keys, values = step.remember(layer.keys, k), step.remember(layer.values, v)
            grouped = q.view(self.rows, self.key_heads, -1, self.head_dim)
            seen = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
            x += layer.out(seen.reshape(self.rows, self.dim))
            x += self.mlp(layer, x)
        return self.unit(x) * self.norm

    def prefill(self, x: Tensor, target: Tensor, own: Tensor) -> None:
        """Fill the cache with the first n steps: their inputs are x (R, n, C), target and own (R, n) as in `turns`."""
        n = x.shape[1]
        x, turns = x.flatten(0, 1).contiguous(), self.turns(target.flatten(), own.flatten())
        for layer in self.layers:
            heads = (rearrange(each, "(r n) h d -> r h n d", n=n) for each in self.qkv(layer, x, turns))
            q, k, v = (each.to(self.dtype) for each in heads)
            layer.keys[:, :, :n], layer.values[:, :, :n] = k, v
            x += layer.out(rearrange(causal_attention(q, k, v), "r h n d -> (r n) (h d)"))
            x += self.mlp(layer, x)
