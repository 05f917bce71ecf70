"""The next-scale Transformer as a prior; `prior/groups/model.py` has its likelihood, its drawing and its walk."""

from typing import ClassVar

from smalti.prior.nextscale.config import NextScaleConfig
from smalti.prior.nextscale.network import NextScaleTransformer


@NextScaleConfig.register
class NextScalePrior(NextScaleTransformer):
    """A distribution over the codes of each grid given the class and the coarser grids."""

    unheeded: ClassVar[str] = (
        "draws grid after grid, coarse first: what is kept in a finer grid than what is drawn is not heeded in drawing "
        "it"
    )

    @property
    def order_in_words(self) -> str:
        return "grid after grid, coarse first"
