"""The prior one step at a time: its weights laid out for that, and the cache of keys and values they fill.

R rows (images, or twice as many under guidance): x (R, C) fp32; queries (R, heads, d), keys and values (R, key_heads,
d); the cache, for each layer, keys and values (R, key_heads, T, d), there at full length from the start.

Step n reads the code of step n − 1 (step 0 the class) and predicts the one of step n. `prefill` reads the inputs of
many steps at once, `step` one. Both compute what `prior.transformer.network` computes, with fewer and larger
operations:

    norm weights     multiplied into the matrices behind them
    x / rms(x)       as √C x / √(‖x‖² + εC): a vector norm, a hypot and a division, half the time of rms_norm on a CPU
    rotation         of pairs laid side by side, as one product of complex numbers
    grouped heads    the queries that share a key stand as rows of one attention, so no key is copied
"""

from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from smalti.prior.draw import Precision
from smalti.prior.layers import EPSILON
from smalti.prior.transformer.fast.matrix import Matrix, cache_type, make_matrix
from smalti.prior.transformer.layers import Block, causal_attention
from smalti.prior.transformer.network import CausalTransformer

ALIGNED = 8  # the cache's length divides by it, as CUDA's attention wants of a mask


class Step(Protocol):
    """Which step it is: what is read of a table of all steps, and what of the cache."""

    def read(self, table: Tensor) -> Tensor:
        """table (T, ...) -> its row of this step (...)."""

    def write(self, table: Tensor, row: Tensor) -> None:
        """Put the row of this step into a table (T, ...)."""

    def remember(self, cache: Tensor, new: Tensor) -> Tensor:
        """Put new (R, key_heads, d) into the cache (R, key_heads, T, d); return the part of it to attend to."""

    def mask(self) -> Tensor | None:
        """Which places of that part are written, if not all are."""


class NumberedStep:
    """Step n, where n is a Python number: the part of the cache that is written, by slicing."""

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
    """Step n, where n (1,) lives on the device, as a captured graph needs it: the first `length` places, masked."""

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


class Layer(NamedTuple):
    qkv: Matrix
    qk_weight: Tensor  # (heads + key_heads, d), of the norms of queries and keys
    out: Matrix
    gate_up: Matrix
    down: Matrix
    keys: Tensor  # the cache
    values: Tensor


class CachedTransformer:
    """A prior's weights as they are now: train it further and a new one is needed."""

    def __init__(self, prior: CausalTransformer, rows: int, precision: Precision):
        """
        Args:
            rows: of a step; the cache is as large.
            precision: of the weights, fp32, bf16 or int8, and with bf16 of the cache. The stream between the blocks,
                queries and keys until they are turned, and the logits are fp32 always.
        """
        a, self.device = prior.architecture, prior.device
        self.rows, self.dim, self.head_dim, self.heads, self.key_heads = rows, a.dim, a.head_dim, a.heads, a.key_heads
        self.precision, self.dtype = precision, cache_type(precision, rows, self.device)
        self.split = (a.heads + a.key_heads, a.key_heads)  # heads that are turned, and values
        self.slots = -(-prior.config.layout.length // ALIGNED) * ALIGNED
        self.floor = {width: torch.tensor((width * EPSILON) ** 0.5) for width in (a.dim, a.head_dim)}
        self.after = prior.head.after
        with torch.no_grad():
            self.angles = torch.complex(prior.cos, prior.sin)  # (1 + T, d / 2)
            self.layers = [
                self._layer(cast(Block, block)) for block in prior.blocks
            ]  # torch says only that they are modules
            self.norm = prior.norm.weight.float() * self._scale(a.dim)
            precise: Precision = "bf16" if self.device.type == "cuda" and precision == "bf16" else "fp32"
            self.head = [
                [_logits(matrix[q], rows, precise) for q in range(prior.config.layout.depth)]
                for matrix in prior.head.matrices()
            ]

    def _layer(self, block: Block) -> Layer:
        attention, mlp, C, d = block.attention, block.mlp, self._scale(self.dim), self._scale(self.head_dim)
        turned, _ = self.split
        qkv = (attention.qkv.weight * block.attention_norm.weight * C).float()
        qk, v = qkv.split([heads * self.head_dim for heads in self.split])
        qk = rearrange(qk, "(h two p) c -> (h p two) c", h=turned, two=2)  # the two of a pair side by side
        norms = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.key_heads, -1)]
        weights = {
            "qkv": torch.cat([qk, v]),
            "out": attention.out.weight,
            "gate_up": mlp.gate_up.weight * block.mlp_norm.weight * C,
            "down": mlp.down.weight,
        }
        shape = (self.rows, self.key_heads, self.slots, self.head_dim)
        return Layer(
            **{name: make_matrix(weight.float(), self.rows, self.precision) for name, weight in weights.items()},
            qk_weight=rearrange(torch.cat(norms).float() * d, "h (two p) -> h (p two)", two=2),
            keys=torch.zeros(shape, device=self.device, dtype=self.dtype),
            values=torch.zeros(shape, device=self.device, dtype=self.dtype),
        )

    def turns(self, target: Tensor, own: Tensor) -> Tensor:
        """The places to predict and the inputs' own, as rows (N,) of the table of angles -> (N, heads + key_heads, d /
        2)."""
        queries, keys = self.angles.index_select(0, target), self.angles.index_select(0, own)
        return torch.cat(
            [queries[:, None].expand(-1, self.heads, -1), keys[:, None].expand(-1, self.key_heads, -1)], dim=1
        )

    def step(self, x: Tensor, turns: Tensor, step: Step) -> Tensor:
        """The inputs x (R, C) of a step and their `turns` -> what the head reads (R, C). Writes over x."""
        mask = step.mask()
        for layer in self.layers:
            q, k, v = self._qkv(layer, x, turns)
            keys, values = step.remember(layer.keys, k), step.remember(layer.values, v)
            grouped = q.view(self.rows, self.key_heads, -1, self.head_dim)
            seen = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
            x += layer.out(seen.reshape(self.rows, self.dim))
            x += self._mlp(layer, x)
        return self._unit(x) * self.norm

    def prefill(self, x: Tensor, target: Tensor, own: Tensor) -> None:
        """The inputs x (R, n, C) of the first n steps, target and own (R, n) as in `turns`: fills the cache."""
        n = x.shape[1]
        x, turns = x.flatten(0, 1).contiguous(), self.turns(target.flatten(), own.flatten())
        for layer in self.layers:
            q, k, v = (
                rearrange(each, "(r n) h d -> r h n d", n=n).to(self.dtype) for each in self._qkv(layer, x, turns)
            )
            layer.keys[:, :, :n], layer.values[:, :, :n] = k, v
            x += layer.out(rearrange(causal_attention(q, k, v), "r h n d -> (r n) (h d)"))
            x += self._mlp(layer, x)

    def logits(self, hidden: Tensor, depth: int, before: list[Tensor]) -> Tensor:
        """What `step` returned (R, C), at a depth of its place, and the parts drawn so far, each (R,) -> logits (R,
        V_g)."""
        return self.head[len(before)][depth](self.after(hidden, before))

    def _qkv(self, layer: Layer, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, C), turns (N, heads + key_heads, d / 2) -> queries (N, heads, d), keys and values (N, key_heads, d)."""
        heads = layer.qkv(self._unit(x)).view(len(x), -1, self.head_dim)
        qk, v = heads.split_with_sizes(self.split, dim=1)
        qk = (self._unit(qk.float()) * layer.qk_weight).view(len(x), self.split[0], -1, 2)
        qk = torch.view_as_real(torch.view_as_complex(qk) * turns).flatten(2).to(self.dtype)
        return qk[:, : self.heads], qk[:, self.heads :], v

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._unit(x)).chunk(2, dim=-1)
        return layer.down(F.silu(gate).mul_(up))

    def _unit(self, x: Tensor) -> Tensor:
        """x / rms(x), on a CPU short of the factor that `_scale` puts into the matrices."""
        if x.device.type != "cpu":
            return F.rms_norm(x, x.shape[-1:], None, EPSILON)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor[x.shape[-1]])

    def _scale(self, width: int) -> float:
        return width**0.5 if self.device.type == "cpu" else 1.0


def _logits(weight: Tensor, rows: int, precision: Precision) -> Matrix:
    """The product with a head's matrix, fp32 also of bf16 factors: CUDA adds them up so."""
    if precision == "fp32":
        return make_matrix(weight.float(), rows, "fp32")
    transposed = weight.bfloat16().T
    return lambda x: torch.mm(x.bfloat16(), transposed, out_dtype=torch.float32)
