"""`patches`: PatchGAN, which decides for each patch of pixels by itself, so that it judges texture and not the whole.

Isola et al. (2017), https://arxiv.org/abs/1611.07004, sec. 3.2.2, with GroupNorm in the place of BatchNorm, so that an
image's logits do not depend on the batch.
"""

from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.tokenizer.criterion.adversarial.base import Discriminator
from smalti.tokenizer.criterion.adversarial.config import PatchDiscriminatorConfig
from smalti.tokenizer.criterion.trunk.base import Place, Trunk
from smalti.tokenizer.network.convolutional import norm

MOST = 8  # times the width of the first layer, the widest one has
SLOPE = 0.2  # of LeakyReLU below 0


@PatchDiscriminatorConfig.register
class PatchDiscriminator(Discriminator):
    """PatchGAN."""

    heads = 1

    def __init__(self, config: PatchDiscriminatorConfig, place: Place, trunk: Trunk | None):
        super().__init__()
        if min(place.image_size) < 2**config.halvings:
            size = "x".join(map(str, place.image_size))
            raise UserError(
                f"adversarial.halvings {config.halvings}: images of {size} cannot be halved so often; lower it"
            )
        widths = [config.width * min(2**level, MOST) for level in range(config.halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(place.channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for level in range(1, config.halvings):
            layers += [nn.Conv2d(widths[level - 1], widths[level], 4, stride=2, padding=1), norm(widths[level])]
            layers += [nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(widths[-2], widths[-1], 3, padding=1), norm(widths[-1]), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [self.layers(pixels).flatten(1)]
