"""Codes as digits: an index in [0, K) and the mixed-radix digits it is made of, the most significant first.

index = Σ_i digit_i · Π_{j > i} factor_j,   K = Π factor_i
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def to_index(digits: Tensor, factors: Sequence[int]) -> Tensor:
    """digits (..., G), digit g in [0, factors[g]) -> index (...), int64."""
    return (digits.long() * _worth(factors, digits.device)).sum(-1)


def to_digits(index: Tensor, factors: Sequence[int]) -> Tensor:
    """index (...) -> digits (..., G), int64. The inverse of `to_index`."""
    return index.long()[..., None] // _worth(factors, index.device) % torch.tensor(list(factors), device=index.device)


def _worth(factors: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([prod(factors[i + 1 :]) for i in range(len(factors))], device=device)
