"""The layout of a sample in stage one: one or more grids, coarse first, of codes or of vectors.

A grid has a shape of any rank: (h, w) for an image, (t,) for sound, (t, h, w) for moving pictures. All other code asks
the layout and never counts places, so that another kind of data or a hierarchy is another value and no other code.

Shapes: between the stages a sample is flat: codes (B, T) int64, the Q codes of a place side by side, or latents (B, T)
float32, the D channels of a place side by side; P places in all grids. `split` and `join` convert to grids and back.
"""

from math import prod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from smalti.common.config import Settings

if TYPE_CHECKING:  # torch takes seconds, and reading settings does without
    from torch import Tensor

Side = Annotated[int, Field(ge=1, le=2**20)]  # of a grid, in places
LONGEST = 2**24  # numbers a sample
MOST_CODES = 2**24  # K: codes are counted one by one, also where there is no table of them
MOST_COUNTED = 2**30  # Q · K: 64 depths of as many


class Grid(Settings):
    """One grid: its shape, and what stands at each place of it."""

    shape: tuple[Side, ...] = Field(min_length=1, max_length=4)
    """places along each axis: (h, w) of an image"""
    depth: int = Field(1, ge=1, le=2**14)
    """Q, codes a place; or D, channels of a place's vector where the grid holds vectors"""
    factors: tuple[Annotated[int, Field(ge=2, le=MOST_CODES)], ...] | None = Field(None, min_length=1, max_length=64)
    """values of each digit of a code, most significant first, their product K; null where the grid holds vectors"""

    @property
    def places(self) -> int:
        return prod(self.shape)

    @property
    def length(self) -> int:
        """Return the numbers of the grid: codes, or channels of all its vectors."""
        return self.places * self.depth

    @property
    def codebook_size(self) -> int:
        """Return K, values of a code. Raises `ValueError` for a grid of vectors."""
        if self.factors is None:
            raise ValueError(f"{self} are no codes")
        return prod(self.factors)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        if self.factors is None:
            return f"{shape} vector{'s' * (self.places > 1)} of {self.depth}"
        return f"{shape}{f' x {self.depth}' if self.depth > 1 else ''} codes of {prod(self.factors):,}"


class Layout(Settings):
    """The grids of one sample, coarse first, in the order in which a prior meets them."""

    grids: tuple[Grid, ...] = Field(min_length=1, max_length=32)
    """one for most; several for a hierarchy"""

    @model_validator(mode="after")
    def _goes_together(self) -> "Layout":
        first = self.grids[0]
        for grid in self.grids:
            if len(grid.shape) != len(first.shape):
                raise ValueError(f"grids must have as many axes, got {first.shape} and {grid.shape}")
            if (grid.factors is None) != (first.factors is None):
                raise ValueError("grids must all hold codes or all hold vectors")
            K = 1 if grid.factors is None else prod(grid.factors)
            if K > MOST_CODES:
                raise ValueError(
                    f"factors {list(grid.factors or ())} must make at most {MOST_CODES:,} codes, got {K:,}"
                )
            if K * grid.depth > MOST_COUNTED and grid.factors is not None:
                raise ValueError(
                    f"depth {grid.depth} of {K:,} codes must be at most {MOST_COUNTED:,} codes to count, got "
                    f"{K * grid.depth:,}"
                )
        if self.length > LONGEST:
            raise ValueError(f"{self} are {self.length} numbers a sample, more than {LONGEST}")
        return self

    @classmethod
    def of(cls, *shape: int, depth: int = 1, factors: tuple[int, ...] | None = None) -> "Layout":
        """Return the layout of one grid."""
        return cls(grids=(Grid(shape=shape, depth=depth, factors=factors),))

    # ------------------------------------------------------------------------------------------------- of all its grids

    @property
    def length(self) -> int:
        """Return T, the numbers of a sample."""
        return sum(grid.length for grid in self.grids)

    @property
    def places(self) -> int:
        """Return P, the places of all grids."""
        return sum(grid.places for grid in self.grids)

    @property
    def discrete(self) -> bool:
        """Return whether the grids hold codes."""
        return self.grids[0].factors is not None

    @property
    def factors(self) -> tuple[int, ...]:
        """Return the values of each digit of a code. Raises `ValueError` unless all grids have the same codes."""
        found = {grid.factors for grid in self.grids}
        if len(found) > 1 or None in found:
            raise ValueError(f"one codebook size is wanted, and the grids are {self}")
        return found.pop() or ()

    @property
    def codebook_size(self) -> int:
        """Return K, the values of a code. Raises `ValueError` unless all grids have the same codes."""
        return prod(self.factors)

    @property
    def depth(self) -> int:
        """Return Q or D, the numbers of a place. Raises `ValueError` unless all grids have as many."""
        found = {grid.depth for grid in self.grids}
        if len(found) > 1:
            raise ValueError(f"one depth is wanted, and the grids are {self}")
        return found.pop()

    @property
    def codebooks(self) -> int:
        """Return from how many codebooks the numbers of a sample are: one for each depth of each grid.

        A tokenizer may give two of them the same vectors; what a code means still depends on its grid and depth.
        """
        return sum(grid.depth for grid in self.grids)

    @property
    def codebook_names(self) -> tuple[str, ...]:
        """Return the name of each codebook, as it is shown; the empty string of a single one."""
        several, found = len(self.grids) > 1, []
        for grid in self.grids:
            shape = "grid " + " x ".join(map(str, grid.shape))
            for depth in range(grid.depth):
                words = [*([shape] if several else []), *([f"depth {depth + 1}"] if grid.depth > 1 else [])]
                found.append(", ".join(words))
        return tuple(found)

    def codebook_of(self) -> "Tensor":
        """Return the codebook of each number of a sample, (T,) int64: those of a place stand side by side."""
        import torch

        if torch.get_default_device().type == "meta":  # as `common.tensors.shapes_only`
            return torch.empty(self.length, dtype=torch.int64)
        first, found = 0, []
        for grid in self.grids:
            found.append(torch.arange(first, first + grid.depth).repeat(grid.places))
            first += grid.depth
        return torch.cat(found)

    @property
    def rectangle(self) -> tuple[int, int] | None:
        """Return (h, w) of a single grid of rows and columns, as its pictures are drawn; None for other layouts."""
        if len(self.grids) > 1 or len(self.grids[0].shape) != 2:
            return None
        h, w = self.grids[0].shape
        return h, w

    def __str__(self) -> str:
        return " + ".join(map(str, self.grids))

    def differences(self, other: "Layout") -> str:
        """Return the settings in which another layout differs, each with both values, as `factors [16, 8] and [128]`.

        The words of two layouts may be the same: digits of 16 and 8 make 128 codes too.
        """
        mine, theirs = self.model_dump(mode="json")["grids"], other.model_dump(mode="json")["grids"]
        if len(mine) != len(theirs):
            return f"{len(mine)} and {len(theirs)} grids"
        pairs = [(i, name, a[name], b[name]) for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) for name in a]
        where = "" if len(mine) == 1 else "grids.{}."
        return ", ".join(f"{where.format(i)}{name} {a} and {b}" for i, name, a, b in pairs if a != b)

    # ---------------------------------------------------------------------------------------------------- of its places

    def coordinates(self) -> "Tensor":
        """Return the middle of each place, (P, axes) float64, counted from 1 in units of the finest grid.

        Places of two grids that lie over each other are near.
        """
        import torch

        finest = [max(sides) for sides in zip(*(grid.shape for grid in self.grids), strict=True)]
        found = []
        for grid in self.grids:
            axes = [(torch.arange(n).double() + 0.5) * f / n + 0.5 for n, f in zip(grid.shape, finest, strict=True)]
            found.append(torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], 1))
        return torch.cat(found)

    def split(self, flat: "Tensor") -> "list[Tensor]":
        """Return the part of each grid in (B, T): (B, *shape) of single codes, (B, *shape, depth) of others."""
        parts = flat.split([grid.length for grid in self.grids], 1)
        return [part.reshape(len(part), *self._shape(grid)) for part, grid in zip(parts, self.grids, strict=True)]

    def join(self, grids: "list[Tensor]") -> "Tensor":
        """Return (B, T): the inverse of `split`."""
        import torch

        return torch.cat([each.flatten(1) for each in grids], 1)

    def by_place(self, numbers: "Tensor") -> "list[Tensor]":
        """Return for each grid the mean over the numbers of a place: (T,) -> one (*shape)."""
        parts = numbers.split([grid.length for grid in self.grids])
        return [part.view(*grid.shape, grid.depth).mean(-1) for part, grid in zip(parts, self.grids, strict=True)]

    @staticmethod
    def _shape(grid: Grid) -> tuple[int, ...]:
        return grid.shape if grid.depth == 1 and grid.factors is not None else (*grid.shape, grid.depth)


FIRST = ("codebook_size", "factors", "grid", "code_depth")  # of format 1, which has one grid of rows and columns


def of_format_1(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with a layout in place of K, grid and depth, which format 1 wrote one by one.

    Raises:
        ValueError: the digits of a code do not make up K.
    """
    if "grid" not in settings:
        return settings
    K, factors, shape, depth = (settings.get(name) for name in FIRST)
    factors = [K] if factors is None else factors
    whole = isinstance(factors, list) and all(isinstance(number, int) for number in (K, *factors))
    if not whole or prod(factors) != K:
        raise ValueError(f"factors {factors} must multiply to codebook_size {K}")
    grid = {"shape": shape, "depth": 1 if depth is None else depth, "factors": factors}
    return {"layout": {"grids": [grid]}, **{name: value for name, value in settings.items() if name not in FIRST}}


def in_format_1(layout: Layout) -> dict[str, Any]:
    """Return a layout as format 1 wrote it, or the layout itself where format 1 cannot express it."""
    if layout.rectangle is None or not layout.discrete:
        return {"layout": layout.model_dump(mode="json")}
    said = (layout.codebook_size, list(layout.factors), list(layout.rectangle), layout.depth)
    return dict(zip(FIRST, said, strict=True))
