"""The settings of every discriminator and of its training."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import Kind, declared
from smalti.tokenizer.criterion.trunk.config import TrunkConfig

Augmentation = Literal["translation", "colour", "cutout"]


class AdversarialConfig(Kind):
    """A loss by a discriminator."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "none"

    @property
    def reads(self) -> TrunkConfig | None:
        """Return the trunk that it reads."""
        return None

    def scheduled(self, progress: float) -> dict[str, float]:
        """Return the values that change with the share of the steps done, by name."""
        return {}


class DiscriminatorConfig(AdversarialConfig):
    """A discriminator with its own optimizer, which is trained alone before it counts."""

    kind: str  # declared here to stand before the others, where a config is written
    """which of them"""
    weight: float = Field(0.2, gt=0)
    """of its gradient at the decoder's last layer, in lengths of the gradient of all other losses there"""
    most: float = Field(100.0, gt=0)
    """the largest factor by which its gradient is raised to that length"""
    start: float = Field(0.2, ge=0, lt=1)
    """share of the steps after which it begins to be trained"""
    warmup: float = Field(0.1, ge=0, le=1)
    """share of the steps in which it is trained alone, before it counts for the tokenizer"""
    ramp: float = Field(0.2, ge=0, le=1)
    """share of the steps over which its weight then rises from 0"""
    lr: float = Field(4e-4, gt=0)
    """peak learning rate of its AdamW (betas 0.5 and 0.9); it follows the same half cosine as the tokenizer's, whose
    clip and weight_decay it shares"""
    lecam: float = Field(0.05, ge=0)
    """weight of LeCam regularisation, which keeps a discriminator of few images from growing sure"""
    augment: tuple[Augmentation, ...] = ("translation", "colour", "cutout")
    """what images and reconstructions go through before it sees them, so that it does not learn few images by heart"""

    @model_validator(mode="after")
    def _counts_before_the_end(self) -> "DiscriminatorConfig":
        if self.start + self.warmup >= 1:
            raise ValueError(
                f"start {self.start:g} and warmup {self.warmup:g} leave no step in which the discriminator counts: "
                "they are shares of all steps, and their sum must be below 1"
            )
        return self

    def trains(self, progress: float) -> bool:
        """Return whether it is trained at a share of the steps."""
        return progress >= self.start

    def counted(self, progress: float) -> float:
        """Return the share of its weight that counts at a share of the steps."""
        since = progress - self.start - self.warmup
        if since < 0:
            return 0.0
        return min(1.0, since / self.ramp) if self.ramp else 1.0

    def scheduled(self, progress: float) -> dict[str, float]:
        lr = self.lr * (1 + math.cos(math.pi * progress)) / 2  # as `Adversary.step` sets it
        return {
            "adversarial.weight": self.weight * self.counted(progress),
            "adversarial.lr": lr if self.trains(progress) else 0.0,
        }


@declared("smalti.tokenizer.criterion.adversarial.none")
class NoAdversarialConfig(AdversarialConfig):
    """No discriminator."""

    kind: Literal["none"] = "none"
    """none"""


@declared("smalti.tokenizer.criterion.adversarial.patches")
class PatchDiscriminatorConfig(DiscriminatorConfig):
    """The discriminator of patches."""

    kind: Literal["patches"] = "patches"
    """PatchGAN, by patches of pixels"""
    width: int = Field(32, ge=8, le=2**12, multiple_of=8)
    """channels of the first layer; each further one has twice as many, up to eight times"""
    halvings: int = Field(2, ge=1, le=8)
    """layers that halve the image; a patch has 12 pixels a side with 1, 26 with 2, 54 with 3, for images of 128 and
    more"""


@declared("smalti.tokenizer.criterion.adversarial.features")
class FeatureDiscriminatorConfig(DiscriminatorConfig):
    """The discriminator of feature maps."""

    kind: Literal["features"] = "features"
    """small heads over the feature maps of a frozen network"""
    width: int = Field(64, ge=8, le=2**12, multiple_of=8)
    """channels of a head"""
    trunk: TrunkConfig = Field(default_factory=TrunkConfig.default)
    """the frozen network"""

    @property
    def reads(self) -> TrunkConfig:
        return self.trunk
