"""Mixed-radix digits of a code: an index in [0, K) and its digits, the most significant first.

index = Σ_i digit_i · Π_{j > i} factor_j,   K = Π factor_i
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def to_index(digits: Tensor, factors: Sequence[int]) -> Tensor:
    """Return the index (...), int64, of digits (..., G); digit g lies in [0, factors[g])."""
    return (digits.long() * _worth(factors, digits.device)).sum(-1)


def to_digits(index: Tensor, factors: Sequence[int]) -> Tensor:
    """Return the digits (..., G), int64, of an index (...): the inverse of `to_index`."""
    return index.long()[..., None] // _worth(factors, index.device) % torch.tensor(list(factors), device=index.device)


def _worth(factors: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([prod(factors[i + 1 :]) for i in range(len(factors))], device=device)
