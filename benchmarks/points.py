"""Vectors and codes to search the nearest among, and how far the codes that two searches find differ."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TIE = 1e-5  # of |v|² + |e|²: squared distances nearer to each other than this are equal in fp32
Figures = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """N vectors of d dimensions, and K codes."""

    N: int
    d: int
    K: int

    def draw(self, device: str) -> tuple[Tensor, Tensor]:
        """Return vectors (N, d) and codebook (K, d)."""
        generator = torch.Generator().manual_seed(0)
        vectors, codebook = (torch.randn(size, self.d, generator=generator).to(device) for size in (self.N, self.K))
        return vectors, codebook


def compare(vectors: Tensor, codebook: Tensor, codes: Tensor, others: Tensor) -> Figures:
    """Return the share of equal codes, and whether the others are as near as fp32 can tell."""
    differ = (codes != others).nonzero().flatten()
    v, e, other = (x.double() for x in (vectors[differ], codebook[codes[differ]], codebook[others[differ]]))
    apart = ((v - e).square().sum(1) - (v - other).square().sum(1)).abs() / (v.square().sum(1) + e.square().sum(1))
    worst = apart.amax().item() if len(differ) else 0.0
    return {"codes_equal": 1 - len(differ) / len(vectors), "codes_apart": worst, "codes_are_ties": worst <= TIE}
