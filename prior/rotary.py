"""Rotary positions: queries and keys are turned by where their places lie in the layout.

Shapes: x (B, heads, T, head_dim); cos and sin of a turn (T, head_dim / 2), or (B, 1, T, head_dim / 2) where
each sample has its own order.

Rotary positions: Su et al. (2021), here a share of the pairs for each axis of the layout. So attention depends on how
far two places lie apart along each axis, whatever their order.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from smalti.common.layout import Layout
from smalti.common.tensors import shapes_only

ROTARY_BASE = 100.0  # grids are short: the slowest pair turns once in about 500 places


def place_angles(layout: Layout, head_dim: int) -> Tensor:
    """Return the angle by which each pair is turned at each place, (P, head_dim / 2).

    Pairs that the axes leave over are not turned.
    """
    if shapes_only():
        return torch.empty(layout.places, head_dim // 2)
    places = layout.coordinates()  # (P, axes)
    axes = places.shape[1]
    pairs = head_dim // 2 // axes  # of each axis
    speed = ROTARY_BASE ** (-torch.arange(pairs).double() / pairs)
    angles = rearrange(places[:, :, None] * speed, "p a n -> p (a n)")
    return F.pad(angles, (0, head_dim // 2 - axes * pairs)).float()


def rotary_angles(layout: Layout, head_dim: int) -> Tensor:
    """Return the angle by which each pair is turned in a sequence of a class and all codes, (1 + T, head_dim / 2).

    Row 0 is the class, at the origin. Row 1 + t is code t, at its place.
    """
    if shapes_only():
        return torch.empty(1 + layout.length, head_dim // 2)
    return F.pad(place_angles(layout, head_dim).repeat_interleave(layout.depth, 0), (0, 0, 1, 0))


class Turn(NamedTuple):
    """A rotation of the queries or keys of each step: its angles are (T, d / 2), or (B, 1, T, d / 2)."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (B, heads, T, d) with its pairs (x_i, x_{i + d/2}) turned."""
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
