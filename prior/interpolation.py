"""The interpolation of what coarse grids hold to the places of finer ones.

Shapes: P places in all grids of a layout, n and m places along one axis of two grids.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.layout import Layout
from smalti.common.tensors import shapes_only


def interpolation(layout: Layout) -> Tensor:
    """Return the matrix (P, P) that sums, at each place, the vectors of all grids before its own, interpolated there.

    Row p has the weights of the places before: those of each earlier grid sum to one, and all others are zero.
    """
    if shapes_only():
        return torch.empty(layout.places, layout.places)
    found = torch.zeros(layout.places, layout.places)
    for to_places, to in zip(spans(layout), layout.grids, strict=True):
        for of_places, of in zip(spans(layout), layout.grids, strict=True):
            if of_places.start >= to_places.start:
                break
            found[to_places, of_places] = between(of.shape, to.shape)
    return found


def spans(layout: Layout) -> list[slice]:
    """Return the places of each grid."""
    found, first = [], 0
    for grid in layout.grids:
        found.append(slice(first, first + grid.places))
        first += grid.places
    return found


def between(shape: Sequence[int], to: Sequence[int]) -> Tensor:
    """Return the matrix (places of `to`, places of `shape`) that interpolates a grid of any rank, axis by axis."""
    return reduce(_product, (along(n, m) for n, m in zip(shape, to, strict=True)))


def along(n: int, m: int) -> Tensor:
    """Return the matrix (m, n) that interpolates n places linearly to m along an axis; one place is constant."""
    return F.interpolate(torch.eye(n)[None], size=m, mode="linear", align_corners=False)[0].T


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the Kronecker product of two matrices; torch.kron fails on the strides of a side of one place."""
    return (a[:, None, :, None] * b[None, :, None, :]).flatten(2, 3).flatten(0, 1)
