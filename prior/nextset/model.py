"""The next-set Transformer as a prior; `prior/groups/model.py` has its likelihood, its drawing and its walk."""

from typing import ClassVar

from smalti.prior.nextset.config import NextSetConfig
from smalti.prior.nextset.network import NextSetTransformer


@NextSetConfig.register
class NextSetPrior(NextSetTransformer):
    """A distribution over the codes of each set of places given the class and the sets before."""

    order_in_words: ClassVar[str] = "sets of places, each spread over the grid"
    unheeded: ClassVar[str] = (
        "draws set after set of places: what is kept in a later set than what is drawn is not heeded in drawing it"
    )
