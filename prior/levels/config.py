"""The config of a prior for each grid of a hierarchy."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import Settings, declared
from smalti.prior.config import LevelArchitecture, TrainedArchitecture


class HintConfig(Settings):
    """The small Transformer that tells a grid's prior of the grids above: its sizes."""

    depth: int = Field(2, ge=1, le=64)
    """Transformer blocks over all codes of the grids above"""
    dim: int = Field(128, ge=8, le=2**13)
    """width of the residual stream"""
    heads: int = Field(4, ge=1, le=2**10)
    """attention heads; dim / heads must be a multiple of 4"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """on embeddings and on what each block adds; small sets need it"""

    @model_validator(mode="after")
    def _divides(self) -> "HintConfig":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 x heads = {4 * self.heads}")
        return self


@declared("smalti.prior.levels.model")
class LevelsConfig(TrainedArchitecture):
    """A prior for each grid, each given the grids above it (Razavi et al. 2019)."""

    over: ClassVar = "codes"
    kind: Literal["levels"] = "levels"
    """one prior for each grid of a hierarchy, each told of the grids above"""
    top: LevelArchitecture = Field(default_factory=LevelArchitecture.default)
    """of the coarsest grid"""
    rest: LevelArchitecture = Field(default_factory=LevelArchitecture.default)
    """of each finer grid"""
    hint: HintConfig = HintConfig()
    """what each finer grid's prior is told of the grids above"""
