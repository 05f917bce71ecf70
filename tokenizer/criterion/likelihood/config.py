"""The settings of every likelihood, each kind with the file that has it."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind, declared

LEVELS = 256  # of an 8-bit pixel


class LikelihoodConfig(Kind):
    """The likelihood of the pixels, p(x | z)."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "gaussian"

    @abstractmethod
    def outputs(self, channels: int) -> int:
        """Return P, the numbers that a pixel of so many channels takes."""


@declared("smalti.tokenizer.criterion.likelihood.gaussian")
class GaussianConfig(LikelihoodConfig):
    """A normal distribution around what is decoded: the squared error (van den Oord et al. 2017)."""

    kind: Literal["gaussian"] = "gaussian"
    """squared error"""
    sigma: float | None = Field(None, gt=1e-4, le=10)
    """its deviation, pixels being in [-1, 1]; null learns one for each channel, which is sqrt of the mean squared
    error where no pixel is pure black or white"""

    def outputs(self, channels: int) -> int:
        return channels


@declared("smalti.tokenizer.criterion.likelihood.laplace")
class LaplaceConfig(LikelihoodConfig):
    """A Laplace distribution around what is decoded: the absolute error."""

    kind: Literal["laplace"] = "laplace"
    """absolute error"""
    scale: float | None = Field(None, gt=1e-4, le=10)
    """its scale b, pixels being in [-1, 1]; null learns one for each channel, which is the mean absolute error"""

    def outputs(self, channels: int) -> int:
        return channels


@declared("smalti.tokenizer.criterion.likelihood.bernoulli")
class BernoulliConfig(LikelihoodConfig):
    """Black or white pixels; grey ones want images.binarize."""

    kind: Literal["bernoulli"] = "bernoulli"
    """black-and-white images"""

    def outputs(self, channels: int) -> int:
        return channels


@declared("smalti.tokenizer.criterion.likelihood.logistic_mixture")
class LogisticMixtureConfig(LikelihoodConfig):
    """A mixture of logistics at each pixel, its channels one after the other (Salimans et al. 2017)."""

    kind: Literal["logistic_mixture"] = "logistic_mixture"
    """each pixel with its own spread, best in bits"""
    components: int = Field(5, ge=1, le=64)
    """logistics a pixel"""

    def outputs(self, channels: int) -> int:
        return self.components * (1 + 2 * channels + channels * (channels - 1) // 2)


@declared("smalti.tokenizer.criterion.likelihood.categorical")
class CategoricalConfig(LikelihoodConfig):
    """A free distribution over the 256 levels of each channel."""

    kind: Literal["categorical"] = "categorical"
    """256 numbers a pixel"""

    def outputs(self, channels: int) -> int:
        return channels * LEVELS
