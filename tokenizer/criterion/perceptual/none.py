"""`none`: images are compared by their likelihood alone."""

from typing import Literal

from smalti.tokenizer.criterion.perceptual.config import PerceptualConfig


class NoPerceptualConfig(PerceptualConfig):
    """No perceptual distance."""

    kind: Literal["none"] = "none"
    """none: pixels alone"""


@NoPerceptualConfig.register
class NoDistance:
    """No distance; a training without one makes none."""
