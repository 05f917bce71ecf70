"""The settings of a multi-scale tokenizer: the scales, beside the network, the quantizer and the likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.common.layout import Grid, Layout
from smalti.tokenizer.bottleneck.config import SingleConfig, VQConfig
from smalti.tokenizer.code_autoencoder_config import CodeAutoencoderConfig
from smalti.tokenizer.codebooks.facts import FactsOfSeveral

RATIO = 1.5  # of the heights of two scales, where no setting gives them; VAR's ten up to 16 have 1.36 in the mean
MOST_SCALES = 32  # grids of a layout


def usual_scales(height: int) -> tuple[int, ...]:
    """Return the heights of scales up to that of a grid, coarse first: 1, 2, 3, 5, 7 of 7."""
    found = [height]
    while found[0] > 1:
        found.insert(0, min(found[0] - 1, round(found[0] / RATIO)))
    return tuple(found)


@declared("smalti.tokenizer.multiscale.model")
class MultiscaleConfig(CodeAutoencoderConfig):
    """The multi-scale residual tokenizer of VAR (Tian et al. 2024)."""

    kind: Literal["multiscale"] = "multiscale"
    """a VQ-VAE whose codes lie on grids from coarse to fine, each of what those before left: VAR's"""
    quantizer: SingleConfig = VQConfig()
    """what turns the vectors of a scale into codes"""
    scales: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)
    """height of each scale's grid in codes, coarse first, widths in proportion; the last is that of the network's
    grid. null takes each about 1.5 times the one before, from 1: 1, 2, 3, 5, 7"""
    shared: bool = False
    """one codebook for all scales, as VAR's; by default each scale has its own"""

    @model_validator(mode="after")
    def _scales_go_up_to_the_grid(self) -> "MultiscaleConfig":
        heights, (h, w) = self.heights, self.grid
        told = ", ".join(map(str, heights))
        if len(heights) > MOST_SCALES:
            raise ValueError(f"scales: there may be {MOST_SCALES} at most, got {len(heights)} ({told}); leave some out")
        if any(a >= b for a, b in pairwise(heights)):
            raise ValueError(f"scales must ascend, each larger than the one before, got {told}")
        if heights[-1] != h:
            near = ", ".join(map(str, [*(s for s in heights if s < h), h]))
            raise ValueError(
                f"scales must end with the height of the network's grid, {h} x {w} codes of images of "
                f"{self.image_size[0]} x {self.image_size[1]} pixels, got {told}; give {near}"
            )
        if self.quantizer.draws:
            raise ValueError(
                f"quantizer.kind {self.quantizer.name()} draws its codes, and a scale needs those before it as they "
                "will be; take vq, vq_ema, simvq, fsq or lfq"
            )
        return self

    @property
    def heights(self) -> tuple[int, ...]:
        """Return the height of each scale's grid, coarse first."""
        return usual_scales(self.grid[0]) if self.scales is None else self.scales

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Return (h, w) of each scale's grid, coarse first."""
        h, w = self.grid
        return tuple((height, max(1, round(w * height / h))) for height in self.heights)

    @property
    def layout(self) -> Layout:
        """Return the layout of the codes of an image."""
        return Layout(grids=tuple(Grid(shape=shape, factors=self.quantizer.factors) for shape in self.grids))

    @property
    def codebook(self) -> "ScalesFacts":
        facts = self.quantizer.facts("model.quantizer.")
        return ScalesFacts(facts.kind, facts.dim, facts.at, facts, self.layout.codebook_names, self.heights)


@dataclass(frozen=True)
class ScalesFacts(FactsOfSeveral):
    """The facts about the codes of several scales: those of the kind that makes them, and which scales there are."""

    names: tuple[str, ...]  # of the scales' codebooks
    heights: tuple[int, ...]

    def without(self, idle: Sequence[str], kept: int) -> str:
        left = [height for name, height in zip(self.names, self.heights, strict=True) if name not in idle]
        if left[-1:] != [self.heights[-1]]:  # the network's own grid, which cannot be left out
            return "one level more in model.channels, which halves the grid"
        return f"model.scales {' '.join(map(str, left))}"
