"""The configs of the priors over vectors that prior/fit.py makes."""

from typing import Literal

from pydantic import Field

from smalti.common.gaussian_mixture import Covariance
from smalti.prior.config import FittedArchitecture


class StandardNormalConfig(FittedArchitecture):
    """The standard normal N(0, I), which a VAE is trained for. It has nothing to fit, and is told of no class."""

    kind: Literal["standard_normal"] = "standard_normal"
    """every number by itself with mean 0 and deviation 1: what a VAE is trained for"""

    @property
    def by_em(self) -> bool:
        return False


class MixtureConfig(FittedArchitecture):
    """A mixture of Gaussians for each class, and one over all rows for samples without a class."""

    kind: Literal["mixture"] = "mixture"
    """a mixture of Gaussians for each class"""
    components: int = Field(16, ge=1, le=2**16)
    """K, Gaussians of each mixture"""
    covariance: Covariance = "full"
    """of a component. spherical: one variance; diagonal: one for each number; full: numbers correlate; tied: full, and
    shared by the components"""

    @property
    def by_em(self) -> bool:
        return True
