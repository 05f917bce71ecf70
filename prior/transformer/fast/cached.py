"""The Transformer one step at a time: its weights laid out for that, and its cache of keys and values.

R rows (images, or twice as many under guidance): x (R, C) fp32; queries (R, heads, d), keys and values (R, key_heads,
d). The cache holds keys and values (R, key_heads, T, d) of each layer, at full length from the start.

Step n reads the code of step n − 1 (step 0 the class) and predicts the one of step n. `prefill` reads the inputs of
many steps at once, `step` one. Both compute what `prior.transformer.network` computes, with fewer and larger
operations:

    norm weights     are multiplied into the matrices behind them
    x / rms(x)       is √C x / √(‖x‖² + εC): a vector norm, a hypot and a division, half the time of rms_norm on a CPU
    rotation         is one product of complex numbers, as the pairs lie side by side
    grouped heads    the queries that share a key are the rows of one attention, so no key is copied
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


class Layer(NamedTuple):
    """The weights and the cache of one block."""

    qkv: Matrix
    qk_weight: Tensor  # (heads + key_heads, d), of the norms of queries and keys
    out: Matrix
    gate_up: Matrix
    down: Matrix
    keys: Tensor  # the cache
    values: Tensor


class CachedTransformer:
    """The Transformer that computes one step at a time. It takes the weights as they are when it is made."""

    def __init__(self, prior: CausalTransformer, rows: int, precision: Precision):
        """
        Args:
            rows: of a step and of the cache.
            precision: of the weights, fp32, bf16 or int8, and with bf16 of the cache. The stream between the blocks,
                the queries and keys before they are turned, and the logits are always fp32.
        """
        a = prior.architecture
        self.device = prior.device
        self.rows = rows
        self.dim = a.dim
        self.head_dim = a.head_dim
        self.heads = a.heads
        self.key_heads = a.key_heads
        self.precision = precision
        self.dtype = cache_type(precision, rows, self.device)
        self.split = (a.heads + a.key_heads, a.key_heads)  # heads that are turned, and values
        self.slots = -(-prior.config.layout.length // ALIGNED) * ALIGNED
        self.floor = {width: torch.tensor((width * EPSILON) ** 0.5) for width in (a.dim, a.head_dim)}
        self.after = prior.head.after
        with torch.no_grad():
            self.angles = torch.complex(prior.cos, prior.sin)  # (1 + T, d / 2)
            self.layers = [self._layer(cast(Block, block)) for block in prior.blocks]
            self.norm = prior.norm.weight.float() * self._scale(a.dim)
            precise: Precision = "bf16" if self.device.type == "cuda" and precision == "bf16" else "fp32"
            self.head = [
                [_logits(matrix, rows, precise) for matrix in matrices]  # of each codebook
                for matrices in prior.head.matrices()
            ]

    def _layer(self, block: Block) -> Layer:
        attention, mlp = block.attention, block.mlp
        C, d = self._scale(self.dim), self._scale(self.head_dim)
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
            q, k, v = self._qkv(layer, x, turns)
            keys, values = step.remember(layer.keys, k), step.remember(layer.values, v)
            grouped = q.view(self.rows, self.key_heads, -1, self.head_dim)
            seen = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
            x += layer.out(seen.reshape(self.rows, self.dim))
            x += self._mlp(layer, x)
        return self._unit(x) * self.norm

    def prefill(self, x: Tensor, target: Tensor, own: Tensor) -> None:
        """Fill the cache with the first n steps: their inputs are x (R, n, C), target and own (R, n) as in `turns`."""
        n = x.shape[1]
        x, turns = x.flatten(0, 1).contiguous(), self.turns(target.flatten(), own.flatten())
        for layer in self.layers:
            heads = (rearrange(each, "(r n) h d -> r h n d", n=n) for each in self._qkv(layer, x, turns))
            q, k, v = (each.to(self.dtype) for each in heads)
            layer.keys[:, :, :n], layer.values[:, :, :n] = k, v
            x += layer.out(rearrange(causal_attention(q, k, v), "r h n d -> (r n) (h d)"))
            x += self._mlp(layer, x)

    def logits(self, hidden: Tensor, codebook: int | Tensor, before: list[Tensor]) -> Tensor:
        """Return the logits (R, V_g) of the next part.

        Args:
            hidden: (R, C), what `step` returned.
            codebook: of the code, the same for all rows; or (R,), of each row's own.
            before: the parts drawn so far, each (R,).
        """
        head, seen = self.head[len(before)], self.after(hidden, before)
        if isinstance(codebook, int):
            return head[codebook](seen)
        every = torch.stack([matrix(seen) for matrix in head], dim=1)  # (R, codebooks, V_g)
        return every.take_along_dim(codebook[:, None, None], dim=1)[:, 0]

    def _qkv(self, layer: Layer, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (N, heads, d), keys and values (N, key_heads, d) of x (N, C), turned by `turns`."""
        heads = layer.qkv(self._unit(x)).view(len(x), -1, self.head_dim)
        qk, v = heads.split_with_sizes(self.split, dim=1)
        qk = (self._unit(qk.float()) * layer.qk_weight).view(len(x), self.split[0], -1, 2)
        qk = torch.view_as_real(torch.view_as_complex(qk) * turns).flatten(2).to(self.dtype)
        return qk[:, : self.heads], qk[:, self.heads :], v

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._unit(x)).chunk(2, dim=-1)
        return layer.down(F.silu(gate).mul_(up))

    def _unit(self, x: Tensor) -> Tensor:
        """Return x / rms(x), on a CPU without the factor that `_scale` puts into the matrices."""
        if x.device.type != "cpu":
            return F.rms_norm(x, x.shape[-1:], None, EPSILON)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor[x.shape[-1]])

    def _scale(self, width: int) -> float:
        return width**0.5 if self.device.type == "cpu" else 1.0


def _logits(weight: Tensor, rows: int, precision: Precision) -> Matrix:
    """Return the product with a head's matrix; it is fp32 also for bf16 factors, as CUDA sums them."""
    if precision == "fp32":
        return make_matrix(weight.float(), rows, "fp32")
    transposed = weight.bfloat16().T
    return lambda x: torch.mm(x.bfloat16(), transposed, out_dtype=torch.float32)
