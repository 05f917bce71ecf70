"""The settings of the K-means tokenizer, and of fitting it."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from smalti.common.config import Settings
from smalti.common.data.config import ImagesConfig
from smalti.common.layout import MOST_CODES, Layout
from smalti.common.track import Tracker
from smalti.tokenizer.codebooks.facts import CodebookFacts, SizedFacts
from smalti.tokenizer.config import EncodeConfig, ImageTokenizerConfig


class KMeansConfig(ImageTokenizerConfig):
    """K-means of patches: the tokenizer without a network."""

    kind: Literal["kmeans"] = "kmeans"
    """patches, and the mean nearest to each"""
    patch: int = Field(4, ge=1, le=256)
    """pixels a side of the patch that one code stands for"""
    codebook_size: int = Field(512, ge=2, le=MOST_CODES)
    """K, means"""

    @model_validator(mode="after")
    def _divides(self) -> "KMeansConfig":
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

    @property
    def codebook(self) -> CodebookFacts:
        return KMeansFacts("kmeans", self.code_dim, "model.")


class KMeansFacts(SizedFacts):
    """The facts about means of patches."""

    cause = "the means were fitted to other patches than these"

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        return ["more iterations"]


class ClusterConfig(Settings):
    """Stage one without a network: fit the K-means tokenizer."""

    run: str = "runs/digits_kmeans"
    """folder of the experiment; this stage writes into its subfolder tokenizer/"""
    images: ImagesConfig = ImagesConfig()
    """which images, and how they are read; they are taken as they are, neither moved nor mirrored"""
    model: KMeansConfig = KMeansConfig()
    """the tokenizer"""
    encode: EncodeConfig = EncodeConfig()
    """how tokenizer/encode.py will turn the images into codes"""
    iterations: int = Field(20, ge=1)
    """steps of EM, each over all training images"""
    seed: int = Field(0, ge=0, le=2**62)
    """of the first means"""
    track: tuple[Tracker, ...] = ()
    """trackers that get what metrics.jsonl gets, and pictures at every evaluation: tensorboard, wandb, trackio"""
    track_project: str = Field("smalti", pattern=r"^[\w.-]+$", max_length=100)
    """under which they file the run"""
