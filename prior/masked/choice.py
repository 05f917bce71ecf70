"""The choice of the codes that a pass of the masked prior keeps: their number, and their ranks.

Shapes: N passes; hidden (B, T) bool, codes that no pass has kept yet; ranks (B, T).

The number that stays hidden follows a cosine (Chang et al. 2022, sec. 3.3). Halton's order spreads the codes of a pass
evenly over the grid, so that they depend little on each other (Besnier et al. 2025,
https://arxiv.org/abs/2503.17076).
"""

import math

import torch
from torch import Tensor

from smalti.common.layout import Grid, Layout

BASES = (2, 3, 5, 7)  # of Halton's sequence, one an axis


def still_hidden(first: Tensor, done: int, passes: Tensor) -> Tensor:
    """Return how many of `first` hidden codes (B,) stay hidden after `done` of so many passes (B,), (B,): none after
    the last.

    Each pass keeps one code at least, while there are any.
    """
    shares = [math.cos(math.pi / 2 * done / n) if done < n else 0.0 for n in passes.tolist()]
    share = torch.tensor(shares, dtype=torch.float64, device=first.device)
    return torch.minimum((first * share).floor().long(), first - done).clamp_min(0)


def first_ranked(ranks: Tensor, hidden: Tensor, number: Tensor) -> Tensor:
    """Return the `number` (B,) hidden codes of the highest rank in each sample, (B, T) bool."""
    order = ranks.masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(ranks.shape[1], device=ranks.device) < number[:, None]
    return torch.zeros_like(hidden).scatter_(1, order, chosen.expand_as(hidden)) & hidden


def halton_ranks(layout: Layout) -> Tensor:
    """Return the rank of each code, (T,) float: the highest is kept first. The codes of a place stand together."""
    places = torch.cat([torch.tensor(_halton_places(grid)) + start for grid, start in _grids(layout)])
    ranks = torch.empty(len(places))
    ranks[places] = torch.arange(len(places), 0, -1).float()
    deep = ranks.repeat_interleave(layout.depth).view(-1, layout.depth)
    return (deep * layout.depth - torch.arange(layout.depth)).flatten()


def _grids(layout: Layout) -> list[tuple[Grid, int]]:
    """Return each grid, and its first place."""
    starts = [0]
    for grid in layout.grids:
        starts.append(starts[-1] + grid.places)
    return list(zip(layout.grids, starts[:-1], strict=True))


def _halton_places(grid: Grid) -> list[int]:
    """Return the places of a grid in the order in which Halton's sequence first meets them."""
    met: dict[int, None] = {}
    number = 1
    while len(met) < grid.places:
        place = 0
        for side, base in zip(grid.shape, BASES, strict=False):
            place = place * side + int(_radical_inverse(number, base) * side)
        met.setdefault(place)
        number += 1
    return list(met)


def _radical_inverse(number: int, base: int) -> float:
    """Return the digits of a number behind the point, the last one first: the element of Halton's sequence."""
    found, scale = 0.0, 1.0
    while number:
        scale /= base
        number, digit = divmod(number, base)
        found += digit * scale
    return found
