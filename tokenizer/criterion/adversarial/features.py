"""`features`: small heads over the feature maps of a frozen trunk, one a level.

Sauer et al. (2021), https://arxiv.org/abs/2111.01007, without their random projections. A level of more than `FINEST`
places a side is averaged over squares of places first: a head costs by the place, and on a level of an image's own size
it would cost ten times what it judges.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from smalti.tokenizer.criterion.adversarial.base import Discriminator
from smalti.tokenizer.criterion.adversarial.config import FeatureDiscriminatorConfig
from smalti.tokenizer.criterion.trunk.base import Place, Trunk
from smalti.tokenizer.network.convolutional import norm

FINEST = 32  # places a side of the levels that a head reads


@FeatureDiscriminatorConfig.register
class FeatureDiscriminator(Discriminator):
    """Heads over a trunk, which is no part of the module: it is neither trained nor saved with it."""

    def __init__(self, config: FeatureDiscriminatorConfig, place: Place, trunk: Trunk | None):
        super().__init__()
        assert trunk is not None  # its settings name one
        self.frozen = (trunk,)  # in a tuple, which hides it from the module
        self.levels = nn.ModuleList(head(inputs, config.width) for inputs in trunk.widths(place))
        self.heads = len(self.levels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        (trunk,) = self.frozen
        return [head(coarse(level)).flatten(1) for head, level in zip(self.levels, trunk(pixels), strict=True)]


def head(inputs: int, width: int) -> nn.Module:
    """Return a head over a level of so many channels: one logit at each place."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 3, padding=1),
        norm(width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 1),
    )


def coarse(level: Tensor) -> Tensor:
    """Return a level (B, N, h, w) averaged over squares of places until no side has more than `FINEST`."""
    side = math.ceil(max(level.shape[2:]) / FINEST)
    return level if side == 1 else F.avg_pool2d(level, side, ceil_mode=True)
