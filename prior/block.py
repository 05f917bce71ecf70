"""The block of a Transformer whose places all see each other, or those that its attention lets them see.

Shapes: x (B, N, C).
"""

from torch import Tensor, nn

from smalti.prior.attention import Attend, Attention, full_attention
from smalti.prior.layers import RMSNorm, SwiGLU, hidden_width
from smalti.prior.rotary import Turn


class Block(nn.Module):
    """Attention and a gated network, each behind a norm and added to the stream."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(dim), Attention(dim, heads)
        self.mlp_norm, self.mlp = RMSNorm(dim), SwiGLU(dim, hidden_width(dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Turn, attend: Attend = full_attention, of_keys: Turn | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), turn, attend, of_keys))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
