"""The settings of every perceptual distance."""

from typing import Any, ClassVar

from smalti.common.config import Kind
from smalti.tokenizer.criterion.trunk.config import TrunkConfig


class PerceptualConfig(Kind):
    """A distance between an image and its reconstruction that counts beside the likelihood."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "none"

    @property
    def reads(self) -> TrunkConfig | None:
        """Return the trunk that it reads."""
        return None
