"""The config of a masked Transformer."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.prior.config import TrainedArchitecture


@declared("smalti.prior.masked.model")
class MaskedConfig(TrainedArchitecture):
    """A Transformer that predicts hidden codes from all that are not (Chang et al. 2022): its sizes and its masks."""

    over: ClassVar = "codes"
    kind: Literal["masked"] = "masked"
    """attention among all codes; an image is drawn in a few passes"""
    depth: int = Field(6, ge=1, le=512)
    """Transformer blocks"""
    dim: int = Field(256, ge=8, le=2**15)
    """C, width of the residual stream"""
    heads: int = Field(4, ge=1, le=2**12)
    """attention heads; dim / heads must be a multiple of 4, two rotated pairs for each of the two axes"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """on embeddings and on what each block adds; small sets need it"""
    schedule: Literal["cosine", "uniform"] = "cosine"
    """share of the codes that training hides. cosine: mostly many, as the passes of drawing meet them; uniform: every
    number alike, which trains the bound on the likelihood"""

    @model_validator(mode="after")
    def _divides(self) -> "MaskedConfig":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 x heads = {4 * self.heads}")
        return self
