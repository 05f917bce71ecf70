"""The settings of a VQ-VAE-2: those of a VQ-VAE for its bottom level, and the levels above."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.common.layout import Grid, Layout
from smalti.tokenizer.bottleneck.config import BottleneckConfig
from smalti.tokenizer.code_autoencoder_config import CodeAutoencoderConfig
from smalti.tokenizer.codebooks.facts import FactsOfSeveral
from smalti.tokenizer.network.grid import halved


@declared("smalti.tokenizer.vqvae2.model")
class VQVAE2Config(CodeAutoencoderConfig):
    """The hierarchical VQ-VAE (Razavi et al. 2019): grids of codes over each other, each half as fine as the next."""

    kind: Literal["vqvae2"] = "vqvae2"
    """a hierarchy: coarse grids of codes over a fine one, each finer grid conditioned on those above"""
    levels: int = Field(2, ge=2, le=16)
    """grids of codes; the bottom is the network's own, and each above it has half its sides, odd ones rounded up"""
    top: BottleneckConfig | None = None
    """what makes the codes of the levels above the bottom, as many of them as quantizer makes; null: as quantizer"""

    @model_validator(mode="after")
    def _goes_together(self) -> "VQVAE2Config":
        possible = 1 + max(side - 1 for side in self.grid).bit_length()
        if self.levels > possible:
            raise ValueError(
                f"levels {self.levels}: a bottom grid of {self.grid[0]} x {self.grid[1]} can be halved {possible - 1} "
                f"times, which makes {possible} levels; take fewer, or a finer grid by a smaller patch, fewer channels "
                "levels or larger images"
            )
        for what, above, below in (
            ("codes", self.above.size, self.quantizer.size),
            ("codes a place", self.above.depth, self.quantizer.depth),
        ):
            if above != below:
                raise ValueError(
                    f"top makes {above:,} {what} and quantizer {below:,}: one prior draws all levels, which must have "
                    "as many; change one of the two"
                )
        return self

    @property
    def above(self) -> BottleneckConfig:
        """Return the bottleneck of the levels above the bottom."""
        return self.quantizer if self.top is None else self.top

    @property
    def quantizers(self) -> tuple[BottleneckConfig, ...]:
        """Return the bottleneck of each level, coarse first."""
        return (*[self.above] * (self.levels - 1), self.quantizer)

    @property
    def commits(self) -> bool:
        return any(each.commits for each in self.quantizers)

    @property
    def revives(self) -> bool:
        return any(each.revives for each in self.quantizers)

    @property
    def features(self) -> int:
        return self.channels[-1]

    @property
    def vectors(self) -> int:
        return sum(each.dim for each in self.quantizers)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Return (h, w) of each level, coarse first."""
        found = [self.grid]
        while len(found) < self.levels:
            found.append(halved(found[-1]))
        return tuple(found[::-1])

    @property
    def layout(self) -> Layout:
        """Return the layout of the codes of an image, which are whole numbers where two kinds differ in digits."""
        digits = {quantizer.factors for quantizer in self.quantizers}
        factors = self.quantizer.factors if len(digits) == 1 else (self.quantizer.size,)
        return Layout(grids=tuple(Grid(shape=grid, depth=self.quantizer.depth, factors=factors) for grid in self.grids))

    @property
    def codebook(self) -> "LevelsFacts":
        facts, names, Q = self.quantizer.facts("model.quantizer."), self.layout.codebook_names, self.quantizer.depth
        of_levels = tuple(names[first : first + Q] for first in range(0, len(names), Q))
        return LevelsFacts(facts.kind, facts.dim, facts.at, facts, of_levels)

    def scheduled(self, progress: float) -> dict[str, float]:
        above = {} if self.top is None else self.top.scheduled(progress)
        return self.quantizer.scheduled(progress) | {f"top.{name}": value for name, value in above.items()}


@dataclass(frozen=True)
class LevelsFacts(FactsOfSeveral):
    """The facts about the codes of several levels: those of the bottom's kind, and which levels there are."""

    names: tuple[tuple[str, ...], ...]  # of the codebooks of each level, coarse first

    def without(self, idle: Sequence[str], kept: int) -> str:
        left = [names for names in self.names if not set(names) <= set(idle)]
        if len(left) == len(self.names):
            return "a smaller model.quantizer.code_depth"
        if self.names[-1] not in left:  # the network's own grid, which cannot be left out
            return "one level more in model.channels, which halves the bottom's grid"
        return f"model.levels {len(left)}" if len(left) > 1 else "model.kind vqvae, which has one level"
