"""The parts of the Transformer: causal attention and the block.

Shapes: x (B, T, C), queries (B, heads, T, head_dim), keys and values (B, key_heads, T, head_dim).

A key is turned by the place of its code, a query by the place to predict. So attention depends on how far a code lies
from that place along each axis, in every order.

QK-norm: Henry et al. (2020). Grouped queries: Ainslie et al. (2023).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from smalti.prior.layers import RMSNorm, SwiGLU, hidden_width
from smalti.prior.rotary import Turn
from smalti.prior.transformer.config import TransformerConfig

SHORT = 256  # up to this length plain products beat the fused attention on a CPU


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention (B, heads, T, d) of q (B, heads, T, d) with k and v (B, key_heads, T, d)."""
    T, group = q.shape[2], q.shape[1] // k.shape[1]
    if q.device.type != "cpu" or T > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1)
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    hidden = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=q.shape[3] ** -0.5)
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    return (weights @ v.flatten(0, 1)).view(q.shape)


class Attention(nn.Module):
    """Causal self-attention with normalized and rotated queries and keys."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.key_heads = config.heads, config.key_heads
        self.qkv = nn.Linear(config.dim, (config.heads + 2 * config.key_heads) * config.head_dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, target: Turn, own: Turn) -> Tensor:
        heads = rearrange(self.qkv(x), "b t (h d) -> b h t d", h=self.heads + 2 * self.key_heads)
        q, k, v = heads.split([self.heads, self.key_heads, self.key_heads], dim=1)
        q, k = target(self.q_norm(q)), own(self.k_norm(k))
        return self.out(rearrange(causal_attention(q, k, v), "b h t d -> b t (h d)"))


class Block(nn.Module):
    """A block of the Transformer: attention and a gated network, each behind a norm and added to the stream."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.dim), Attention(config)
        self.mlp_norm, self.mlp = RMSNorm(config.dim), SwiGLU(config.dim, hidden_width(config.dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, target: Turn, own: Turn) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), target, own))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
