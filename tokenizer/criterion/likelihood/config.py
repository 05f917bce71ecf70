"""The settings of every likelihood."""

from abc import abstractmethod
from typing import Any, ClassVar

from smalti.common.config import Kind


class LikelihoodConfig(Kind):
    """The likelihood of the pixels, p(x | z)."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "gaussian"

    @abstractmethod
    def outputs(self, channels: int) -> int:
        """Return P, the numbers that a pixel of so many channels takes."""
