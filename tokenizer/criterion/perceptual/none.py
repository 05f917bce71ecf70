"""`none`: images are compared by their likelihood alone."""

from smalti.tokenizer.criterion.perceptual.config import NoPerceptualConfig


@NoPerceptualConfig.register
class NoDistance:
    """No distance; a training without one makes none."""
