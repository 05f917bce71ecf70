"""Attention of every place to every other, for priors that draw all of a sample at once.

Shapes: x (B, N, C), queries, keys and values (B, heads, N, head_dim).

QK-norm: Henry et al. (2020).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.prior.layers import RMSNorm
from smalti.prior.rotary import Turn

SHORT = 256  # up to this length plain products beat the fused attention on a CPU


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention (B, heads, N, d) of q with k and v, all (B, heads, N, d)."""
    if q.device.type != "cpu" or q.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Self-attention with normalized and rotated queries and keys."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(dim // heads), RMSNorm(dim // heads)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, turn: Turn) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        found = full_attention(turn(self.q_norm(q)), turn(self.k_norm(k)), v)
        return self.out(rearrange(found, "b h n d -> b n (h d)"))
