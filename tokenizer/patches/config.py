"""The settings of the tokenizers of patches."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from smalti.common.layout import MOST_CODES, Layout
from smalti.tokenizer.config import ImageTokenizerConfig


class PatchesConfig(ImageTokenizerConfig):
    """A tokenizer without a network, one code a patch."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "kmeans"
    made_by: ClassVar[str | None] = "tokenizer/cluster.py"

    patch: int = Field(4, ge=1, le=256)
    """pixels a side of the patch that one code stands for; it may be the whole image"""
    codebook_size: int = Field(512, ge=2, le=MOST_CODES)
    """K, means"""

    @model_validator(mode="after")
    def _divides(self) -> "PatchesConfig":
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels % self.patch:
                raise ValueError(f"image_size: a {side} of {pixels} does not divide by the patch {self.patch}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Return (h, w) of the codes."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def code_dim(self) -> int:
        """Return D, numbers a patch."""
        return self.image_channels * self.patch**2

    @property
    def layout(self) -> Layout:
        """Return the layout of the codes of an image."""
        return Layout.of(*self.grid, factors=(self.codebook_size,))
