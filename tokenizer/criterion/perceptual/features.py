"""`features`: the distance of the feature maps of a trunk, as LPIPS has it without its learned weights.

    d(x, x̂) = 1/L Σ_l 1/(h_l w_l) Σ_places |ŷ_l(x) − ŷ_l(x̂)|²,    ŷ_l the feature map with unit vectors at its places

Zhang et al. (2018), https://arxiv.org/abs/1801.03924, eq. 1 with w = 1.

Shapes: pixels (B, C, H, W) in [-1, 1]; feature maps (B, N, h, w).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from smalti.tokenizer.criterion.perceptual.config import FeatureDistanceConfig
from smalti.tokenizer.criterion.trunk.base import Trunk

# Added to the squared length of a vector: where a network of ReLUs sees next to nothing, as in a white background, a
# unit vector is noise, and its gradient without bound.
FAINT = 1e-3


@FeatureDistanceConfig.register
class FeatureDistance:
    """The distance of feature maps."""

    def __init__(self, config: FeatureDistanceConfig, trunk: Trunk):
        self.config, self.trunk = config, trunk

    def __call__(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the distance (B,) of images and their reconstructions; it has a gradient to the latter alone."""
        with torch.no_grad():
            seen = self.trunk(images)
        return feature_distance(seen, self.trunk(reconstructions))


def feature_distance(these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
    """Return the distance (B,) of two lists of feature maps, fp32."""
    levels = [(unit(a) - unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(these, those, strict=True)]  # (B,) each
    return torch.stack(levels).mean(0)


def unit(features: Tensor) -> Tensor:
    """Return feature maps (B, N, h, w) with vectors of length one, shorter where there is next to nothing."""
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + FAINT).rsqrt()
