"""The settings of every perceptual distance."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind, declared
from smalti.tokenizer.criterion.trunk.config import TrunkConfig


class PerceptualConfig(Kind):
    """A distance between an image and its reconstruction that counts beside the likelihood."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "none"

    @property
    def reads(self) -> TrunkConfig | None:
        """Return the trunk that it reads."""
        return None


@declared("smalti.tokenizer.criterion.perceptual.none")
class NoPerceptualConfig(PerceptualConfig):
    """No perceptual distance."""

    kind: Literal["none"] = "none"
    """none: pixels alone"""


@declared("smalti.tokenizer.criterion.perceptual.features")
class FeatureDistanceConfig(PerceptualConfig):
    """The distance of feature maps."""

    kind: Literal["features"] = "features"
    """distance of the feature maps of a frozen network, as LPIPS"""
    weight: float = Field(1.0, gt=0)
    """of the distance, beside the squared error"""
    trunk: TrunkConfig = Field(default_factory=TrunkConfig.default)
    """the frozen network"""

    @property
    def reads(self) -> TrunkConfig:
        return self.trunk
