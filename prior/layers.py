"""The parts of the Transformer: rotary positions on the grid, causal attention, SwiGLU, the block.

Shapes: x (B, T, C), queries (B, heads, T, head_dim), keys and values (B, key_heads, T, head_dim), cos and sin of the angles
(T, head_dim / 2), or (B, 1, T, head_dim / 2) where images differ in their order.

RMSNorm: Zhang and Sennrich (2019). SwiGLU: Shazeer (2020). Rotary positions: Su et al. (2021), here half of the pairs
turn with the row and half with the column. QK-norm: Henry et al. (2020). Grouped queries: Ainslie et al. (2023).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from prior.config import ArchitectureConfig, PriorConfig

ROTARY_BASE = 100.0  # grids are short: the slowest pair turns once in about 600 places
EPSILON = 1e-6  # of the norms
SHORT = 256  # up to this length plain products beat the fused attention on a CPU


def grid_angles(config: PriorConfig) -> Tensor:
    """(1 + T, head_dim / 2): how far each pair is turned: row 0 for the class, at (0, 0); row 1 + t for the code at place t of
    the sequence, which stands at (i + 1, j + 1) of the grid."""
    pairs = config.architecture.head_dim // 4  # of each axis
    speed = ROTARY_BASE ** (-torch.arange(pairs).double() / pairs)
    h, w = config.grid
    row, column = torch.meshgrid(torch.arange(h) + 1.0, torch.arange(w) + 1.0, indexing="ij")
    places = torch.stack([row.flatten(), column.flatten()], 1).double().repeat_interleave(config.code_depth, 0)  # (T, 2)
    places = torch.cat([places.new_zeros(1, 2), places])
    return rearrange(places[:, :, None] * speed, "t yx p -> t (yx p)").float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of x (B, heads, T, d) by angles of cos and sin (T, d / 2) or (B, 1, T, d / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each place attends to itself and the places before it: q (B, heads, T, d), k and v (B, key_heads, T, d)."""
    T, group = q.shape[2], q.shape[1] // k.shape[1]
    if q.device.type != "cpu" or T > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1)
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    hidden = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + hidden, dim=-1)
    return weights.to(v.dtype) @ v


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight, in the type of x: under autocast a weight of another type would miss the fused kernel."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        self.heads, self.key_heads = config.heads, config.key_heads
        self.qkv = nn.Linear(config.dim, (config.heads + 2 * config.key_heads) * config.head_dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = rearrange(self.qkv(x), "b t (h d) -> b h t d", h=self.heads + 2 * self.key_heads)
        q, k, v = heads.split([self.heads, self.key_heads, self.key_heads], dim=1)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return self.out(rearrange(causal_attention(q, k, v), "b h t d -> b t (h d)"))


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
