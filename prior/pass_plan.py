"""The plan of priors that draw in few passes: the order of a grid's places, and the share of codes each pass leaves.

P places of a grid, each a number in raster order.

The number that is left follows a cosine (Chang et al. 2022, MaskGIT, https://arxiv.org/abs/2202.04200, sec. 3.3).
Halton's order spreads the places of a pass evenly over the grid, so that their codes depend little on each other
(Besnier et al. 2025, https://arxiv.org/abs/2503.17076).
"""

import math

from smalti.common.layout import Grid

BASES = (2, 3, 5, 7)  # of Halton's sequence, one an axis


def share_left(done: int, passes: int) -> float:
    """Return the share of the codes that is left after `done` passes: none after the last."""
    return math.cos(math.pi / 2 * done / passes) if done < passes else 0.0


def halton_places(grid: Grid) -> list[int]:
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
