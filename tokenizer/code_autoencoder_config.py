"""The settings of a convolutional encoder and decoder around a quantizer: of a VQ-VAE, and of one of several scales."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from smalti.tokenizer.bottleneck.config import BottleneckConfig, VQConfig
from smalti.tokenizer.codebooks.facts import CodebookFacts
from smalti.tokenizer.config import TrainedConfig
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig, LikelihoodConfig
from smalti.tokenizer.network.grid import grid_of


class CodeAutoencoderConfig(TrainedConfig):
    """The convolutional autoencoder of codes of the VQGAN family (Esser et al. 2021, table 7)."""

    kind: str  # declared here to stand before the sizes, where a config is written
    """which of them"""
    patch: Literal[1, 2, 4, 8] = 1
    """pixels a side that the first layer folds into channels; 2 or 4 save most of the time of a full-size level"""
    channels: tuple[Annotated[int, Field(ge=8, le=2**14, multiple_of=8)], ...] = Field(
        (64, 128), min_length=1, max_length=12
    )
    """width of each level; each level after the first halves the image"""
    blocks: int = Field(1, ge=1, le=256)
    """residual blocks a level"""
    attention: bool = False
    """self-attention at the lowest level"""
    quantizer: BottleneckConfig = VQConfig()
    """what turns encoder outputs into codes"""
    likelihood: LikelihoodConfig = GaussianConfig()
    """what the decoder says of the pixels, p(x | z); its -log is the reconstruction loss"""

    @model_validator(mode="after")
    def _divides(self) -> "CodeAutoencoderConfig":
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels < self.downsampling:
                raise ValueError(
                    f"image_size: a {side} of {pixels} is smaller than the downsampling {self.downsampling}; "
                    f"take larger images, fewer channels levels or a smaller patch"
                )
        grid_of(self.image_size, self.patch, len(self.channels))
        return self

    @property
    def wants_black_and_white(self) -> bool:
        return self.likelihood.name() == "bernoulli"

    @property
    def commits(self) -> bool:
        return self.quantizer.commits

    @property
    def revives(self) -> bool:
        return self.quantizer.revives

    @property
    def codebook(self) -> CodebookFacts:
        return self.quantizer.facts("model.quantizer.")

    def scheduled(self, progress: float) -> dict[str, float]:
        return self.quantizer.scheduled(progress)

    @property
    def downsampling(self) -> int:
        """Return the pixels a side that one code stands for."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Return (h, w) of the codes."""
        return grid_of(self.image_size, self.patch, len(self.channels))

    @property
    def features(self) -> int:
        """Return the channels that the encoder gives."""
        return self.quantizer.dim

    @property
    def vectors(self) -> int:
        """Return the channels that the decoder reads."""
        return self.quantizer.dim
