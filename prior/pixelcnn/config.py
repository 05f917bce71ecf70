"""The config of a gated PixelCNN."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import declared
from smalti.prior.config import LevelArchitecture


@declared("smalti.prior.pixelcnn.model")
class PixelCNNConfig(LevelArchitecture):
    """A gated PixelCNN (van den Oord et al. 2016): the sizes that no other stage decides."""

    over: ClassVar = "codes"
    kind: Literal["pixelcnn"] = "pixelcnn"
    """gated convolutions over the rows above and what stands to the left"""
    depth: int = Field(8, ge=1, le=512)
    """gated layers"""
    dim: int = Field(128, ge=8, le=2**13)
    """C, channels of both stacks"""
    kernel: int = Field(5, ge=3, le=63)
    """side of a layer's window, an odd number; what lies further off is seen through several layers"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """on what each layer adds; small sets need it"""

    @model_validator(mode="after")
    def _odd(self) -> "PixelCNNConfig":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, so that a window has a middle; {self.kernel + 1} is")
        return self
