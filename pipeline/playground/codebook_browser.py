"""The codebook to browse: every code's patch and use, ordered by use or by number, and the codes nearest to one.

Shapes: counts (Q, K), how often each code was used at each of Q depths; patches (N, 1 or 3, p, p) uint8.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.common.layout import Layout
from smalti.tokenizer.base import DrawsCodes
from smalti.tokenizer.codebooks.picture import patches

PAGE = 256  # codes on a page
NEAR = 6  # neighbours shown


class Near(NamedTuple):
    """The codes nearest to one, by what they add to z_q (by pixels for K-means)."""

    codes: Tensor  # (n,)
    distances: Tensor  # (n,)


class CodebookBrowser:
    """All codes of a tokenizer."""

    def __init__(self, tokenizer: DrawsCodes, layout: Layout, counts: Tensor | None):
        """
        Args:
            counts: where a run has counted them; without, all codes count alike.
        """
        self.tokenizer, self.counted = tokenizer, counts is not None
        self.depths, self.codes = layout.depth, layout.codebook_size
        self.counts = counts if counts is not None else torch.ones(self.depths, self.codes, dtype=torch.int64)
        self.patches = lru_cache(maxsize=16)(self._patches)

    @property
    def usual(self) -> Tensor:
        """The most used code of each depth, (Q,)."""
        return self.counts.argmax(dim=1)

    @property
    def pages(self) -> int:
        return -(-self.codes // PAGE)

    def order(self, depth: int, by_use: bool) -> Tensor:
        """Return the codes (K,) by their use, the most used first, or by number."""
        return self.counts[depth].argsort(descending=True, stable=True) if by_use else torch.arange(self.codes)

    def page(self, depth: int, by_use: bool, number: int) -> Tensor:
        """Return the codes on a page, in order."""
        return self.order(depth, by_use)[number * PAGE : (number + 1) * PAGE]

    def _patches(self, depth: int, codes: tuple[int, ...]) -> Tensor:
        return patches(self.tokenizer, self.counts, depth, torch.tensor(codes))

    def near(self, depth: int, code: int) -> Near:
        """Return the `NEAR` codes nearest to one of a depth."""
        table = self.tokenizer.code_vectors(depth, torch.arange(self.codes)).float()
        distances = (table - table[code]).square().sum(1).sqrt()
        distances[code] = torch.inf
        found = distances.topk(min(NEAR, self.codes - 1), largest=False)
        return Near(found.indices.cpu(), found.values.cpu())
