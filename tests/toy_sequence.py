"""A tokenizer whose latents are continuous and one-dimensional: a sequence of vectors, which no shipped family has."""

from typing import Literal

from torch import Tensor, nn

from smalti.common.layout import Layout
from smalti.tokenizer.base import Terms, TrainedTokenizer
from smalti.tokenizer.config import ImageTokenizerConfig, TrainConfig, TrainedConfig


class SequenceConfig(TrainedConfig):
    kind: Literal["toy_sequence"] = "toy_sequence"
    """maps an image to a sequence of a few vectors by one matrix, and back"""
    vectors: int = 4
    """number of vectors"""
    dim: int = 3
    """numbers in a vector"""

    @property
    def layout(self) -> Layout:
        return Layout.of(self.vectors, depth=self.dim)


class SequenceTokenizer(TrainedTokenizer):
    config: SequenceConfig

    def __init__(self, config: SequenceConfig):
        super().__init__()
        self.config = config
        pixels = config.image_channels * config.image_size[0] * config.image_size[1]
        self.down, self.up = nn.Linear(pixels, config.layout.length), nn.Linear(config.layout.length, pixels)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Terms:
        z = self.down(images.flatten(1))
        error = (self.up(z).view_as(images) - images).float().square().mean()
        return Terms({"squared_error": error, "size": z.float().square().mean()}, {}, z)

    def weights(self, c: TrainConfig) -> dict[str, float]:
        return {"size": 1e-3}

    def _encode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.down(images.flatten(1)).float()

    def _decode(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.up(latents).view(-1, self.config.image_channels, *self.config.image_size).clamp(-1, 1)


def register() -> None:
    SequenceConfig.register(SequenceTokenizer)


def forget() -> None:
    for family in (ImageTokenizerConfig, TrainedConfig):
        del family.kinds[SequenceConfig.name()]
