"""What the settings of every likelihood say."""

from typing import Any, ClassVar

from smalti.common.config import Kind


class LikelihoodConfig(Kind):
    """What the decoder says of the pixels, p(x | z)."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "gaussian"

    def outputs(self, channels: int) -> int:
        """Return P, numbers a pixel of so many channels."""
        raise NotImplementedError
