"""The key/value cache of the sampling loop: every layer at full length from the start."""

import torch
from torch import Tensor

from prior.config import PriorConfig


class KVCache:
    """Keys and values (layers, B, heads, T, head_dim). Written in place; a step reads the part written so far."""

    def __init__(self, config: PriorConfig, batch_size: int, *, device: torch.device, dtype: torch.dtype):
        a = config.architecture
        shape = (a.depth, batch_size, a.heads, config.length, a.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, layer: int, t: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, heads, 1, head_dim) at place t; return the layer's (B, heads, t + 1, head_dim)."""
        self.k[layer, :, :, t : t + 1] = k
        self.v[layer, :, :, t : t + 1] = v
        return self.k[layer, :, :, : t + 1], self.v[layer, :, :, : t + 1]
