"""The settings of the K-means tokenizer."""

from collections.abc import Sequence
from typing import Literal

from smalti.common.config import declared
from smalti.tokenizer.codebooks.facts import CodebookFacts, SizedFacts
from smalti.tokenizer.patches.config import PatchesConfig


@declared("smalti.tokenizer.kmeans.model")
class KMeansConfig(PatchesConfig):
    """K-means of patches: the tokenizer without a network."""

    kind: Literal["kmeans"] = "kmeans"
    """patches, and the mean nearest to each"""

    @property
    def codebook(self) -> CodebookFacts:
        return KMeansFacts("kmeans", self.code_dim, "model.")


class KMeansFacts(SizedFacts):
    """The facts about means of patches."""

    cause = "the means were fitted to other patches than these"

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        return ["more iterations"]
