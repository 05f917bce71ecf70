"""The config of a next-set Transformer."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.prior.config import TrainedArchitecture


@declared("smalti.prior.nextset.model")
class NextSetConfig(TrainedArchitecture):
    """A Transformer that predicts a set of codes at once, from those of the sets before (Liu et al. 2024)."""

    over: ClassVar = "codes"
    kind: Literal["nextset"] = "nextset"
    """of codes on one grid: a set of places in one pass given those before"""
    depth: int = Field(6, ge=1, le=512)
    """Transformer blocks"""
    dim: int = Field(256, ge=8, le=2**15)
    """C, width of the residual stream"""
    heads: int = Field(4, ge=1, le=2**12)
    """attention heads; dim / heads must be a multiple of 4, two rotated pairs for each of the two axes"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """on embeddings and on what each block adds; small sets need it"""
    passes: int = Field(12, ge=1, le=2**16)
    """sets, at most one a place, each drawn in one pass: of few places at first, of many at last"""
    order: Literal["halton", "diagonal"] = "halton"
    """which places come first. halton: those of a set lie evenly over the grid (Besnier et al. 2025); diagonal: from
    corner to corner, and a set is a band"""

    @model_validator(mode="after")
    def _divides(self) -> "NextSetConfig":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 x heads = {4 * self.heads}")
        return self

    def check_over(self, layout: Layout) -> None:
        super().check_over(layout)
        if len(layout.grids) > 1:
            raise UserError(
                f"model.kind {self.name()} predicts sets of places of one grid, and a sample is {layout}, several: "
                "take --model.kind nextscale, whose passes are the grids, or transformer, masked or levels"
            )
        if self.passes > layout.places:
            raise UserError(
                f"model.passes {self.passes} are more than the {layout.places} places of {layout}, and each pass takes "
                f"one at least: give --model.passes {layout.places} or fewer"
            )
