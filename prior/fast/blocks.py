"""The blocks of a Transformer while it draws: their weights laid out for that, and their keys and values kept.

R rows (images, or twice as many under guidance), N of all their inputs together: x (N, C) fp32; queries (N, heads, d),
keys and values (N, key_heads, d). The cache holds keys and values (R, key_heads, slots, d) of each layer, at full
length from the start.

All is what the plain blocks compute, with fewer and larger operations:

    norm weights     are multiplied into the matrices behind them
    x / rms(x)       is √C x / √(‖x‖² + εC): a vector norm, a hypot and a division, half the time of rms_norm on a CPU
    rotation         is one product of complex numbers, as the pairs lie side by side
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.prior.code_head import CodeHead
from smalti.prior.fast.matrix import Matrix, cache_type, make_matrix
from smalti.prior.layers import EPSILON, RMSNorm
from smalti.prior.sampling_config import Precision


class Transformer(Protocol):
    """The parts of a prior whose blocks are cached: each block has `attention` and `mlp`, and a norm before each."""

    cos: Tensor  # (places, d / 2), of the angles by which places are turned
    sin: Tensor
    blocks: nn.ModuleList
    norm: RMSNorm
    head: CodeHead

    @property
    def device(self) -> torch.device: ...


class Layer(NamedTuple):
    """The weights and the cache of one block."""

    qkv: Matrix
    qk_weight: Tensor  # (heads + key_heads, d), of the norms of queries and keys
    out: Matrix
    gate_up: Matrix
    down: Matrix
    keys: Tensor  # the cache
    values: Tensor


class CachedBlocks:
    """The blocks, norm and head of a Transformer. It takes the weights as they are when it is made."""

    def __init__(
        self,
        prior: Transformer,
        heads: tuple[int, int],
        rows: int,
        slots: int,
        precision: Precision,
        packed_for: int | None = None,
    ):
        """
        Args:
            heads: of queries, and of keys and values.
            rows: R, of the cache.
            slots: its length.
            precision: of the weights, fp32, bf16 or int8, and with bf16 of the cache. The stream between the blocks,
                the queries and keys before they are turned, and the logits are always fp32.
            packed_for: N for which matrices are laid out; by default R, an input a row. Others work, more slowly.
        """
        self.device, self.precision = prior.device, precision
        self.rows, self.slots, self.packed_for = rows, slots, packed_for or rows
        self.heads, self.key_heads = heads
        self.dim, self.head_dim = prior.norm.weight.numel(), 2 * prior.cos.shape[1]
        self.dtype = cache_type(precision, self.packed_for, self.device)
        self.split = (self.heads + self.key_heads, self.key_heads)  # heads that are turned, and values
        self.floor = {width: torch.tensor((width * EPSILON) ** 0.5) for width in (self.dim, self.head_dim)}
        self.after = prior.head.after
        with torch.no_grad():
            self.angles = torch.complex(prior.cos, prior.sin)  # (places, d / 2)
            self.layers = [self._layer(block) for block in prior.blocks]
            self.norm = prior.norm.weight.float() * self._scale(self.dim)
            precise: Precision = "bf16" if self.device.type == "cuda" and precision == "bf16" else "fp32"
            self.head = [
                [_logits(matrix, self.packed_for, precise) for matrix in matrices]  # of each codebook
                for matrices in prior.head.matrices()
            ]

    def _layer(self, block: Any) -> Layer:
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
            **{name: make_matrix(weight.float(), self.packed_for, self.precision) for name, weight in weights.items()},
            qk_weight=rearrange(torch.cat(norms).float() * d, "h (two p) -> h (p two)", two=2),
            keys=torch.zeros(shape, device=self.device, dtype=self.dtype),
            values=torch.zeros(shape, device=self.device, dtype=self.dtype),
        )

    def logits(self, hidden: Tensor, codebook: int | Tensor, before: list[Tensor]) -> Tensor:
        """Return the logits (N, V_g) of the next part.

        Args:
            hidden: (N, C), features behind the last norm.
            codebook: of the code, the same for all; or (N,), of each its own.
            before: the parts drawn so far, each (N,).
        """
        head, seen = self.head[len(before)], self.after(hidden, before)
        if isinstance(codebook, int):
            return head[codebook](seen)
        every = torch.stack([matrix(seen) for matrix in head], dim=1)  # (N, codebooks, V_g)
        return every.take_along_dim(codebook[:, None, None], dim=1)[:, 0]

    def qkv(self, layer: Layer, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (N, heads, d), keys and values (N, key_heads, d) of x (N, C).

        Args:
            turns: (n, heads + key_heads, d / 2), or (n, 1, d / 2) for all heads, of n inputs, N of them or of each row.
        """
        heads = layer.qkv(self.unit(x)).view(len(x), -1, self.head_dim)
        qk, v = heads.split_with_sizes(self.split, dim=1)
        qk = (self.unit(qk.float()) * layer.qk_weight).view(-1, len(turns), self.split[0], self.head_dim // 2, 2)
        qk = torch.view_as_real(torch.view_as_complex(qk) * turns).view(len(x), -1, self.head_dim).to(self.dtype)
        return qk[:, : self.heads], qk[:, self.heads :], v

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        """Return what the gated network of a block adds to x (N, C)."""
        gate, up = layer.gate_up(self.unit(x)).chunk(2, dim=-1)
        return layer.down(F.silu(gate).mul_(up))

    def unit(self, x: Tensor) -> Tensor:
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
