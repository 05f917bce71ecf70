"""The settings of every network of a VAE."""

from abc import abstractmethod
from typing import Any, ClassVar

from smalti.common.config import Kind


class NetworkConfig(Kind):
    """An encoder and a decoder between images and vectors."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "convolutional"

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int] | None:
        """Return (h, w) of the network's own grid of vectors, or None where it has none.

        Raises:
            ValueError: a network that images of this size do not fit.
        """
