"""The settings of the tokenizer that is a mixture of Gaussians of patches."""

from typing import Literal

from pydantic import Field

from smalti.common.choices import Covariance
from smalti.common.config import declared
from smalti.tokenizer.codebooks.facts import CodebookFacts, SizedFacts
from smalti.tokenizer.patches.config import PatchesConfig


@declared("smalti.tokenizer.mixture.model")
class GaussianMixtureConfig(PatchesConfig):
    """A mixture of Gaussians of patches, by EM: K-means with soft assignment."""

    kind: Literal["gaussian_mixture"] = "gaussian_mixture"
    """patches, and the likeliest component of a mixture of Gaussians for each"""
    covariance: Covariance = "diagonal"
    """of a component. spherical: one variance; diagonal: one for each pixel; full: pixels correlate; tied: full, and
    shared by the components"""
    regularization: float = Field(1e-3, ge=0)
    """added to the variance of each pixel, which lies in [-1, 1]: at 1e-3 no deviation is below four
    of the 256 levels"""

    @property
    def codebook(self) -> CodebookFacts:
        return MixtureFacts("gaussian_mixture", self.code_dim, "model.")


class MixtureFacts(SizedFacts):
    """The facts about components of a mixture of patches."""

    cause = "the components were fitted to other patches, or overlap others that are likelier"

    def wider_use(self, revive_below: float | None) -> list[str]:
        return ["more iterations", "model.covariance spherical"]
