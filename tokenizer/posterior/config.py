"""The settings of every posterior, each kind with the file that has its paper and equation, and what the encoder and
the loss read of them."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind, declared


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
    def kl_by_number(self) -> bool:
        """Return whether the KL is a sum over the numbers of a vector."""
        return False

    @property
    def scores_any(self) -> bool:
        """Return whether log q of a z from elsewhere costs about what a draw does, as of another image's."""
        return True


@declared("smalti.tokenizer.posterior.gaussian")
class GaussianConfig(PosteriorConfig):
    """A normal distribution (Kingma and Welling 2014)."""

    kind: Literal["gaussian"] = "gaussian"
    """a normal distribution, the VAE's"""
    covariance: Literal["isotropic", "diagonal", "full"] = "diagonal"
    """one variance a place, one for each number, or with the correlations of all pairs of numbers"""

    def outputs(self, dim: int) -> int:
        scales = {"isotropic": 1, "diagonal": dim, "full": dim * (dim + 1) // 2}
        return dim + scales[self.covariance]

    @property
    def closed_form(self) -> bool:
        return True

    @property
    def kl_by_number(self) -> bool:
        return self.covariance != "full"


@declared("smalti.tokenizer.posterior.mixture")
class MixtureConfig(PosteriorConfig):
    """A weighted sum of normal distributions, each with a variance for each number."""

    kind: Literal["mixture"] = "mixture"
    """a weighted sum of normal distributions"""
    components: int = Field(4, ge=1, le=256)
    """K, how many normal distributions"""

    def outputs(self, dim: int) -> int:
        return self.components * (1 + 2 * dim)


@declared("smalti.tokenizer.posterior.flow")
class FlowConfig(PosteriorConfig):
    """Noise through invertible networks (Rezende and Mohamed 2015; Kingma et al. 2016)."""

    kind: Literal["flow"] = "flow"
    """noise through invertible networks"""
    transform: Literal["iaf", "nsf"] = "iaf"
    """what each network sets: a shift and a scale (Kingma et al. 2016), or a spline (Durkan et al. 2019)"""
    transforms: int = Field(2, ge=1, le=16)
    """K, networks one after the other; two let every number depend on every other"""
    hidden: tuple[Annotated[int, Field(ge=1, le=2**14)], ...] = Field((64, 64), min_length=1, max_length=16)
    """units of each hidden layer of each network"""
    context: int = Field(16, ge=1, le=2**12)
    """numbers a place, beside mean and scale, by which the encoder speaks to the networks"""

    def outputs(self, dim: int) -> int:
        return 2 * dim + self.context

    @property
    def scores_any(self) -> bool:
        return False  # D passes through each network


@declared("smalti.tokenizer.posterior.none")
class NoneConfig(PosteriorConfig):
    """No distribution: z is the encoder's output, as in an autoencoder."""

    kind: Literal["none"] = "none"
    """the encoder's output itself, an autoencoder"""

    def outputs(self, dim: int) -> int:
        return dim

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def scores_any(self) -> bool:
        return False
