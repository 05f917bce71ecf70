"""The parts of the Transformer: rotary positions on the grid, attention with a cache, SwiGLU, the block.

Shapes: x (B, T, C), queries, keys and values (B, heads, T, head_dim), angles (T, head_dim / 2).

RMSNorm: Zhang and Sennrich (2019). SwiGLU: Shazeer (2020). Rotary positions: Su et al. (2021), here half of the pairs
turn with the row and half with the column. QK-norm: Henry et al. (2020).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from prior.cache import KVCache
from prior.config import ArchitectureConfig, PriorConfig

ROTARY_BASE = 100.0  # grids are short: the slowest pair turns once in about 600 places
SHORT = 256  # up to this length plain products beat the fused attention on a CPU


def grid_angles(config: PriorConfig) -> Tensor:
    """(T, head_dim / 2): how far each pair is turned at each input: the class at (0, 0), codes of (i, j) at (i + 1, j + 1)."""
    pairs = config.architecture.head_dim // 4  # of each axis
    speed = ROTARY_BASE ** (-torch.arange(pairs).double() / pairs)
    h, w = config.grid
    row, column = torch.meshgrid(torch.arange(h) + 1.0, torch.arange(w) + 1.0, indexing="ij")
    places = torch.stack([row.flatten(), column.flatten()], 1).double().repeat_interleave(config.code_depth, 0)  # (T, 2)
    places = torch.cat([places.new_zeros(1, 2), places[:-1]])  # the last code is predicted, never an input
    return rearrange(places[:, :, None] * speed, "t yx p -> t (yx p)").float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of x (B, heads, T, d) by angles whose cos and sin are (T, d / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each place attends to itself and the places before it."""
    T = q.shape[2]
    if q.device.type != "cpu" or T > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + hidden, dim=-1)
    return weights.to(v.dtype) @ v


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight, in the type of x: under autocast a weight of another type would miss the fused kernel."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self._qkv(x, cos, sin)
        return self.out(rearrange(causal_attention(q, k, v), "b h t d -> b t (h d)"))

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, layer: int, t: int) -> Tensor:
        """One place: x (B, 1, C) at place t, which sees what `cache` holds of the places before it."""
        q, k, v = self._qkv(x, cos, sin)
        k, v = cache.write(layer, t, k, v)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))

    def _qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b t (qkv h d) -> qkv b h t d", qkv=3, h=self.heads)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v


class SwiGLU(nn.Module):
    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.dim), Attention(config)
        self.mlp_norm, self.mlp = RMSNorm(config.dim), SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, layer: int, t: int) -> Tensor:
        x = x + self.attention.step(self.attention_norm(x), cos, sin, cache, layer, t)
        return x + self.mlp(self.mlp_norm(x))
