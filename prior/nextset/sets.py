"""The sets of places of a grid that a next-set prior draws one after the other: their sizes, and their order.

P places, N sets.
"""

from itertools import pairwise, product
from typing import Literal

from smalti.common.layout import Grid
from smalti.prior.pass_plan import halton_places, share_left


def set_sizes(places: int, sets: int) -> list[int]:
    """Return how many places each set has: they follow a cosine, are at least one, and never fall.

    So each set has room for the codes of the set before it.
    """
    left = [min(int(places * share_left(done, sets)), places - done) for done in range(sets + 1)]
    return sorted(before - after for before, after in pairwise(left))  # floors make neighbours differ by one


def places_in_order(grid: Grid, order: Literal["halton", "diagonal"]) -> list[int]:
    """Return the places of a grid in the order in which the sets take them."""
    if order == "halton":
        return halton_places(grid)
    steps = [sum(place) for place in product(*map(range, grid.shape))]  # from the first corner
    return sorted(range(grid.places), key=steps.__getitem__)  # in raster order among those of as many steps
