"""The levels of pixels, digit after digit: four of base 4, highest first, each with a distribution given those before.

It takes P(level < l) at twelve levels l of a pixel, where a table of all levels has 256.

Shapes: levels (B, H, W) int64 in [0, 255]; masses (N, 4), N = B · H · W.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smalti.tokenizer.criterion.likelihood.base import Below
from smalti.tokenizer.criterion.likelihood.config import LEVELS

RADIX = 4
FLOOR = 2.0**-50  # of a mass: differences of P below that are rounding
Choose = Callable[[Tensor, int], Tensor]  # (masses (N, 4), worth) -> digits (N,), each of which counts `worth` levels


def walk_levels(below: Below, shape: Sequence[int], choose: Choose, device: torch.device) -> Tensor:
    """Return levels (B, H, W). `choose` gives their digits, each from the masses that it may take, which need not sum
    to one.

    Encoder and decoder must compute exactly the same numbers, so both walk here.
    """
    first = torch.zeros(*shape, 1, dtype=torch.int64, device=device)  # the lowest level with the digits so far
    low = torch.zeros(first.shape, dtype=torch.float64, device=device)  # P below it
    high = torch.ones_like(low)  # P below the lowest level beyond these
    steps, worth = torch.arange(1, RADIX, device=device), LEVELS
    while worth > 1:
        worth //= RADIX
        ends = torch.cat([low, below(first + worth * steps), high], dim=-1)  # (B, H, W, 5)
        digits = choose(ends.diff(dim=-1).clamp_min(FLOOR).flatten(0, -2), worth).view_as(first)
        low, high = ends.gather(-1, digits), ends.gather(-1, digits + 1)
        first = first + worth * digits
    return first[..., 0]
