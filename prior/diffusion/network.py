"""A diffusion Transformer: bidirectional attention over all places, told of the level of noise and the condition.

Shapes: x (B, P, D) noisy vectors; level (B,) from 0 to 1000; condition (B, ...); the stream (B, P, C); told (B, C).

Level and condition shift, scale and gate what each block adds, all gates 0 at first (adaLN-zero: Peebles and Xie 2023,
https://arxiv.org/abs/2212.09748).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.prior.attention import Attention
from smalti.prior.config import PriorConfig
from smalti.prior.diffusion.config import DiffusionConfig
from smalti.prior.layers import EPSILON, SwiGLU, hidden_width
from smalti.prior.rotary import Turn, place_angles

WAVES = 256  # sines and cosines of a level
SLOWEST = 10_000.0  # the slowest wave turns once in 2π times as many levels


def waves(level: Tensor) -> Tensor:
    """Return sines and cosines (B, 256) of levels (B,), from fast to slow (Vaswani et al. 2017)."""
    share = torch.arange(WAVES // 2, device=level.device) / (WAVES // 2)
    angles = level.float()[:, None] * torch.exp(-math.log(SLOWEST) * share)
    return torch.cat([angles.cos(), angles.sin()], 1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (B, P, C) with mean 0 and deviation 1 at each place, then scaled and shifted by (B, 1, C) each."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


class Block(nn.Module):
    """A block: attention and a gated network, each modulated by what the network is told, and gated by it."""

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.modulation = nn.Linear(config.dim, 6 * config.dim)
        self.attention = Attention(config.dim, config.heads)
        self.mlp = SwiGLU(config.dim, hidden_width(config.dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, told: Tensor, turn: Turn) -> Tensor:
        first, second = rearrange(self.modulation(told), "b (m c) -> b 1 m c", m=6).split(3, 2)
        shift, scale, gate = first.unbind(2)
        x = x + gate * self.dropout(self.attention(modulated(x, shift, scale), turn))
        shift, scale, gate = second.unbind(2)
        return x + gate * self.dropout(self.mlp(modulated(x, shift, scale)))


class DiffusionTransformer(nn.Module):
    """The network that predicts noise, or what stands for it, from noisy vectors."""

    cos: Tensor  # (P, head_dim / 2), of the angles by which places are turned
    sin: Tensor

    def __init__(self, config: PriorConfig):
        super().__init__()
        a = config.architecture
        assert isinstance(a, DiffusionConfig)
        self.embed = nn.Linear(config.layout.depth, a.dim)
        self.place_embedding = nn.Parameter(torch.zeros(config.layout.places, a.dim))
        self.condition_embedding = config.condition.embedding(a.dim)
        self.level_mlp = nn.Sequential(nn.Linear(WAVES, a.dim), nn.SiLU(), nn.Linear(a.dim, a.dim))
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.last_modulation = nn.Linear(a.dim, 2 * a.dim)
        self.head = nn.Linear(a.dim, config.layout.depth)
        angles = place_angles(config.layout, a.head_dim)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.recompute = False  # set in training: blocks compute their activations again in the backward pass
        self._initialize()

    def _initialize(self) -> None:
        """Draw the initial weights.

        matrices               Xavier's uniform distribution, as in DiT; biases 0
        embeddings             N(0, 0.02²)
        modulations and head   zeros: a block adds nothing at first, and the first prediction is 0
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "modulation" in name or name == "head.weight":
                nn.init.zeros_(parameter)
            elif "embedding" in name:
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return what is predicted, (B, P, D) fp32."""
        told = F.silu(self.level_mlp(waves(level)) + self.condition_embedding(condition))
        x, turn = self.embed(x) + self.place_embedding, Turn(self.cos, self.sin)
        for block in self.blocks:
            again = self.recompute and self.training
            x = checkpoint(block, x, told, turn, use_reentrant=False) if again else block(x, told, turn)
        shift, scale = self.last_modulation(told)[:, None].chunk(2, dim=-1)
        return self.head(modulated(x, shift, scale)).float()

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights of the blocks that are matrices, but for those of the modulations."""
        return [p for name, p in self.blocks.named_parameters() if p.ndim == 2 and "modulation" not in name]
