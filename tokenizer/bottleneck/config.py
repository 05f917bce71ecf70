"""The settings of every bottleneck, with the sizes that the rest of the project reads.

size       K, how many values a code has
dim        D, channels between encoder and decoder
depth      Q, codes a place: 1 but for `residual`
factors    whole numbers whose product is K, most significant first: (K,) for a table of vectors, the digits a code is
           made of where there is no table
"""

from abc import abstractmethod
from math import prod
from typing import Any, ClassVar, Literal

from pydantic import Field

from smalti.common.config import Kind
from smalti.common.layout import MOST_CODES
from smalti.tokenizer.codebooks.facts import CodebookFacts, TableFacts

Gradient = Literal["straight_through", "rotation"]


class BottleneckConfig(Kind):
    """A bottleneck, which turns encoder outputs into codes."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "vq"
    draws: ClassVar[bool] = False  # whether codes are drawn in training, and not those that evaluation chooses

    @property
    @abstractmethod
    def factors(self) -> tuple[int, ...]:
        """Return the values of each digit of a code, most significant first; of a table (K,)."""

    @property
    def size(self) -> int:
        """Return K, which of a table is a setting."""
        return prod(self.factors)

    @property
    def depth(self) -> int:
        """Return Q, which of a stack is a setting."""
        return 1

    @property
    @abstractmethod
    def dim(self) -> int:
        """Return D, which of a table is a setting."""

    def scheduled(self, progress: float) -> dict[str, float]:
        """Return the values that change with the share of the steps done, by name."""
        return {}

    def facts(self, at: str) -> CodebookFacts:
        """Return the facts that advice on its codes depends on; `at` stands before its settings' names."""
        return CodebookFacts(self.name(), self.dim, at)


class SingleConfig(BottleneckConfig):
    """A quantizer with one code a place."""

    kinds: ClassVar[dict[str, Any]] = {}


class TableConfig(SingleConfig):
    """A quantizer with a table of K vectors."""

    codebook_size: int = Field(512, ge=2, le=MOST_CODES)
    """K, entries of the codebook"""
    code_dim: int = Field(8, ge=1, le=2**14)
    """D, dimensions of a codebook vector; a few are enough and keep every code in use (Yu et al. 2021, sec. 3.2)"""
    normalize: bool = True
    """l2-normalise codes and encoder outputs, so that nearest means the largest cosine (Yu et al. 2021, sec. 3.2)"""

    @property
    def factors(self) -> tuple[int, ...]:
        return (self.codebook_size,)

    @property
    def dim(self) -> int:
        return self.code_dim

    def facts(self, at: str) -> TableFacts:
        return TableFacts(self.name(), self.dim, at, self.normalize)
