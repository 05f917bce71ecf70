"""The configs of the priors that prior/fit.py makes."""

from typing import ClassVar, Literal

from pydantic import Field

from smalti.common.choices import Covariance
from smalti.common.config import declared
from smalti.prior.config import FittedArchitecture


@declared("smalti.prior.simple.standard_normal")
class StandardNormalConfig(FittedArchitecture):
    """The standard normal N(0, I), which a VAE is trained for. It has nothing to fit, and is told of no class."""

    over: ClassVar = "vectors"
    kind: Literal["standard_normal"] = "standard_normal"
    """every number by itself with mean 0 and deviation 1: what a VAE is trained for"""

    @property
    def by_class(self) -> bool:
        return False


@declared("smalti.prior.simple.mixture")
class MixtureConfig(FittedArchitecture):
    """A mixture of Gaussians for each class, and one over all rows for samples without a class."""

    over: ClassVar = "vectors"
    kind: Literal["mixture"] = "mixture"
    """a mixture of Gaussians for each class"""
    components: int = Field(16, ge=1, le=2**16)
    """K, Gaussians of each mixture"""
    covariance: Covariance = "full"
    """of a component. spherical: one variance; diagonal: one for each number; full: numbers correlate; tied: full, and
    shared by the components"""

    @property
    def by_class(self) -> bool:
        return True


@declared("smalti.prior.simple.uniform")
class UniformConfig(FittedArchitecture):
    """The uniform distribution over codes. It has nothing to fit, and is told of no class."""

    over: ClassVar = "codes"
    kind: Literal["uniform"] = "uniform"
    """every code by itself, and all K values alike"""

    @property
    def by_class(self) -> bool:
        return False


@declared("smalti.prior.simple.independent")
class IndependentConfig(FittedArchitecture):
    """The frequencies of codes in the rows of each class, and in all rows for samples without a class."""

    over: ClassVar = "codes"
    kind: Literal["independent"] = "independent"
    """every code by itself, as often as in the training rows of its class"""
    by_place: bool = True
    """true: frequencies at each place; false: one table for all places of a grid, at each depth"""

    @property
    def by_class(self) -> bool:
        return True
