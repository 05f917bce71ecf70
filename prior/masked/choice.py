"""The choice of the codes that a pass of the masked prior keeps: their number, and their ranks.

Shapes: N passes; hidden (B, T) bool, codes that no pass has kept yet; ranks (B, T).

The number that stays hidden follows the cosine of `prior/pass_plan.py`, which has Halton's order too.
"""

import torch
from torch import Tensor

from smalti.common.layout import Grid, Layout
from smalti.prior.pass_plan import halton_places, share_left


def still_hidden(first: Tensor, done: int, passes: Tensor) -> Tensor:
    """Return how many of `first` hidden codes (B,) stay hidden after `done` of so many passes (B,), (B,): none after
    the last.

    Each pass keeps one code at least, while there are any.
    """
    shares = [share_left(done, n) for n in passes.tolist()]
    share = torch.tensor(shares, dtype=torch.float64, device=first.device)
    return torch.minimum((first * share).floor().long(), first - done).clamp_min(0)


def first_ranked(ranks: Tensor, hidden: Tensor, number: Tensor) -> Tensor:
    """Return the `number` (B,) hidden codes of the highest rank in each sample, (B, T) bool."""
    order = ranks.masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(ranks.shape[1], device=ranks.device) < number[:, None]
    return torch.zeros_like(hidden).scatter_(1, order, chosen.expand_as(hidden)) & hidden


def halton_ranks(layout: Layout) -> Tensor:
    """Return the rank of each code, (T,) float: the highest is kept first. The codes of a place stand together."""
    places = torch.cat([torch.tensor(halton_places(grid)) + start for grid, start in _grids(layout)])
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
