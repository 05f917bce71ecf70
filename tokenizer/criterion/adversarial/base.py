"""The contract of a discriminator: images to logits, one for each patch, of one head or several.

Shapes: pixels (B, C, H, W) in [-1, 1]; logits (B, n) of each head, above 0 for an image and below for a reconstruction.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from smalti.tokenizer.criterion.adversarial.config import DiscriminatorConfig
from smalti.tokenizer.criterion.trunk.base import Place, Trunk


class Discriminator(nn.Module, ABC):
    """A network that tells reconstructions from images. An image's logits do not depend on others in the batch."""

    config_class: ClassVar[type[DiscriminatorConfig]]
    heads: int

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the logits (B, n) of each head."""


def build_discriminator(config: DiscriminatorConfig, place: Place, trunk: Trunk | None) -> Discriminator:
    """Return the discriminator of a config, its weights drawn at random.

    Raises:
        UserError: the images are too small for it.
    """
    discriminator: Discriminator = config.builds(config, place, trunk)
    return discriminator
