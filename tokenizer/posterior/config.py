"""The settings of every posterior, with what the encoder and the loss read of them."""

from abc import abstractmethod
from typing import Any, ClassVar

from smalti.common.config import Kind


class PosteriorConfig(Kind):
    """The approximate posterior q(z | x), a distribution over vectors z that the encoder's output chooses."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "gaussian"

    @abstractmethod
    def outputs(self, dim: int) -> int:
        """Return N, the numbers a place that the encoder gives for vectors of `dim` numbers."""

    @property
    def stochastic(self) -> bool:
        """Return whether z is drawn: False where it is the encoder's output itself."""
        return True

    @property
    def closed_form(self) -> bool:
        """Return whether KL(q || N(0, I)) has a formula."""
        return False

    @property
    def scores_any(self) -> bool:
        """Return whether log q of a z from elsewhere costs about what a draw does, as of another image's."""
        return True

    @property
    def has_moments(self) -> bool:
        """Return whether mean and standard deviation under q have formulas."""
        return False
