"""Evenly spaced places: some of many rows that stand for all of them, also where rows are sorted by class."""

import torch
from torch import Tensor


def evenly_spaced(number: int, of: int) -> Tensor:
    """Return `number` places of `of`, (n,) int64, evenly spaced from 0 on; all of them where there are fewer."""
    number = min(number, of)
    return torch.arange(number) * of // max(1, number)
