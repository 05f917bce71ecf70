"""Random numbers of each sample from its own seed, drawn one after another.

Shapes: normal numbers (B, T) float32, uniform ones (B,) in [0, 1).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from smalti.common.seeds import generator


class Draws:
    """The random numbers of a batch. A sample's are the same in every batch, in the order in which it asks for them."""

    def __init__(self, seeds: Sequence[int], length: int, device: torch.device):
        self.length, self.device = length, device
        self.generators = [generator(seed) for seed in seeds]

    def normal(self, rows: Tensor | None = None) -> Tensor:
        """Return standard normal numbers (B, T), or of some rows (B,) bool alone, and 0 in the others."""
        asks = [True] * len(self.generators) if rows is None else rows.tolist()
        zeros = torch.zeros(self.length)
        pairs = zip(self.generators, asks, strict=True)
        each = [torch.randn(self.length, generator=g) if asked else zeros for g, asked in pairs]
        return torch.stack(each).to(self.device)

    def uniform(self) -> Tensor:
        """Return a number of each sample, (B,)."""
        return torch.cat([torch.rand(1, generator=g) for g in self.generators]).to(self.device)


def seed_of(sample: Tensor) -> int:
    """Return a seed that belongs to the numbers of a sample (T,) alone."""
    digest = hashlib.sha256(sample.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big")
