"""The config of a next-scale Transformer."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.common.errors import UserError
from smalti.common.layout import Layout
from smalti.prior.config import TrainedArchitecture


@declared("smalti.prior.nextscale.model")
class NextScaleConfig(TrainedArchitecture):
    """A Transformer that predicts all codes of a grid at once, from those of the coarser grids (Tian et al. 2024)."""

    over: ClassVar = "codes"
    kind: Literal["nextscale"] = "nextscale"
    """of codes on several grids, coarse first: a grid in one pass given those before"""
    depth: int = Field(6, ge=1, le=512)
    """Transformer blocks"""
    dim: int = Field(256, ge=8, le=2**15)
    """C, width of the residual stream"""
    heads: int = Field(4, ge=1, le=2**12)
    """attention heads; dim / heads must be a multiple of 4, two rotated pairs for each of the two axes"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """on embeddings and on what each block adds; small sets need it"""

    @model_validator(mode="after")
    def _divides(self) -> "NextScaleConfig":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 x heads = {4 * self.heads}")
        return self

    def check_over(self, layout: Layout) -> None:
        super().check_over(layout)
        if len(layout.grids) == 1:
            raise UserError(
                f"model.kind {self.name()} predicts each grid from the coarser ones and needs several, coarse first; a "
                f"sample is {layout}, one grid: take --model.kind nextset or masked, or a tokenizer of several grids"
            )
