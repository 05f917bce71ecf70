"""The mean and the standard deviation of the numbers of latents over a split, by which they get unit variance.

Each channel of a grid has one of both, over rows and places; a vector of the whole image one for each of its numbers.
Where a row is a distribution q(z | x) of its own mean and scale, the variance is that of z, by the law of total
variance:

    Var z = Var_x E[z | x] + E_x Var[z | x]

Diffusion on latents wants unit variance (Rombach et al. 2022, app. G, https://arxiv.org/abs/2112.10752).

Shapes: latents and scale (N, T); N rows, T numbers as the layout has them; C channels of all grids, grid after grid.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smalti.common.config import Settings
from smalti.common.layout import Layout

if TYPE_CHECKING:
    import numpy as np

TOGETHER = 2**22  # numbers that are summed at once, in fp64


class LatentStatistics(Settings):
    """Mean and standard deviation of each channel."""

    mean: tuple[float, ...]
    """(C,) of each channel of each grid, coarse first"""
    deviation: tuple[Annotated[float, Field(ge=0)], ...]
    """(C,) its standard deviation; of moments that of draws, the scale of each row included"""

    def check(self, layout: Layout) -> None:
        """Raise ValueError unless there is one of each for every channel of a layout of vectors."""
        channels = 0 if layout.discrete else sum(grid.depth for grid in layout.grids)
        if {len(self.mean), len(self.deviation)} != {channels}:
            got = f"{len(self.mean)} and {len(self.deviation)}"
            raise ValueError(f"statistics must be of the {channels} channels of {layout}, got {got}")


def unit_statistics(layout: Layout) -> LatentStatistics:
    """Return the statistics of vectors that have mean 0 and deviation 1 already."""
    channels = sum(grid.depth for grid in layout.grids)
    return LatentStatistics(mean=(0.0,) * channels, deviation=(1.0,) * channels)


def latent_statistics(shards: Iterable[tuple[Any, Any | None]], layout: Layout) -> LatentStatistics:
    """Return the statistics of shards, each of latents (N, T) and, of moments, their scale (N, T).

    Shards are merged in their order by the formula of Chan et al. (1979), so that who wrote them changes nothing.
    """
    import numpy as np  # not on top: reading settings does without

    channels = sum(grid.depth for grid in layout.grids)
    points, mean, squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    step = max(1, TOGETHER // layout.length)
    for latents, scale in shards:
        for start in range(0, len(latents), step):
            some = slice(start, start + step)
            n, m, s = _sums(np.asarray(latents[some]), None if scale is None else np.asarray(scale[some]), layout)
            total, apart = points + n, m - mean
            squares += s + apart**2 * points * n / total
            mean, points = mean + apart * n / total, total
    return LatentStatistics(
        mean=tuple(mean.tolist()), deviation=tuple(np.sqrt(squares / np.maximum(points, 1)).tolist())
    )


def _sums(
    latents: "np.ndarray", scale: "np.ndarray | None", layout: Layout
) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Return the number of points of each channel (C,), their mean, and the squares of draws around it, summed."""
    import numpy as np

    found, ends = [], np.cumsum([grid.length for grid in layout.grids])[:-1]
    scales = np.zeros_like(latents) if scale is None else scale
    both = zip(np.split(latents, ends, 1), np.split(scales, ends, 1), layout.grids, strict=True)
    for values, spread, grid in both:
        x, own = (each.reshape(-1, grid.depth).astype(np.float64) for each in (values, spread))
        mean = x.mean(0)
        found.append((np.full(grid.depth, float(len(x))), mean, ((x - mean) ** 2 + own**2).sum(0)))
    points, means, squares = (np.concatenate(each) for each in zip(*found, strict=True))
    return points, means, squares
