"""The settings of every objective of a VAE."""

from typing import Any, ClassVar

from pydantic import Field

from smalti.common.config import Kind


class ObjectiveConfig(Kind):
    """What training a VAE minimises."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "elbo"
    needs_density: ClassVar[bool] = True  # whether it needs log q(z | x), which an autoencoder has not

    samples: int = Field(1, ge=1, le=2**14)
    """draws of z for each image, over which the objective is averaged; memory and time grow with them"""

    def scheduled(self, progress: float) -> dict[str, float]:
        """Return the values that change with the share of the steps done, by name."""
        return {}
