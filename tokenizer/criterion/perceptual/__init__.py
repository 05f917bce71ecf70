"""The perceptual distances between an image and its reconstruction, beside the likelihood.

none        none
features    distance of the feature maps of a trunk
"""

from smalti.tokenizer.criterion.perceptual import features, none

__all__ = ["features", "none"]  # the kinds there are: each registers itself
