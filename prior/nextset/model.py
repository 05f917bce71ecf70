"""The next-set Transformer as a prior; `prior/groups/model.py` has its likelihood, its drawing and its walk."""

from typing import ClassVar

from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.nextset.network import NextSetTransformer


@NextSetConfig.register
class NextSetPrior(NextSetTransformer):
    """A distribution over the codes of each set of places given the class and the sets before."""

    unheeded: ClassVar[str] = (
        "draws set after set of places: what is kept in a later set than what is drawn is not heeded in drawing it"
    )

    @property
    def order_in_words(self) -> str:
        a = self.config.architecture
        assert isinstance(a, NextSetConfig)
        return f"sets of places, {'each spread over the grid' if a.order == 'halton' else 'from corner to corner'}"
