"""`fsq`: no codebook; each of D numbers is bounded by tanh and rounded to one of a few levels.

Mentzer et al. (2023), https://arxiv.org/abs/2309.15505, sec. 3.1 and app. A.1. With levels (L_1, ..., L_D) there are
K = Π L_i codes, of which an index is the mixed-radix number of the levels. There is nothing to collapse and no loss:
the gradient goes straight through the rounding.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from smalti.common.layout import MOST_CODES
from smalti.common.mixed_radix import to_digits, to_index
from smalti.tokenizer.bottleneck.base import Quantized, Quantizer
from smalti.tokenizer.bottleneck.config import SingleConfig
from smalti.tokenizer.bottleneck.estimators import straight_through
from smalti.tokenizer.codebooks.facts import CodebookFacts

EDGE = 1e-3  # how far beyond the outermost level tanh may reach: at the bound itself rounding would be a tie


class FSQConfig(SingleConfig):
    """No codebook: each of D numbers is bounded and rounded to a few levels (Mentzer et al. 2023)."""

    kind: Literal["fsq"] = "fsq"
    """rounded numbers"""
    levels: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field((8, 8, 8), min_length=1)
    """values of each number; K is their product, 2^24 at most"""

    @model_validator(mode="after")
    def _counts(self) -> "FSQConfig":
        if self.size > MOST_CODES:
            raise ValueError(f"levels {self.levels} make {self.size} codes, more than 2^24; take fewer or smaller ones")
        return self

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def factors(self) -> tuple[int, ...]:
        return self.levels

    def facts(self, at: str) -> "FSQFacts":
        return FSQFacts(self.name(), self.dim, at)


class FSQFacts(CodebookFacts):
    """The facts about codes of rounded numbers."""

    cause = "the encoder's outputs leave levels, or combinations of levels, out"

    @property
    def size(self) -> str:
        return f"{self.at}levels"

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        return ["more steps"]

    def fewer(self, wanted: float, codebook_size: int) -> str:
        return f"{self.size} whose product is near {max(2, round(wanted))}"


@FSQConfig.register
class FiniteScalarQuantizer(Quantizer):
    """The FSQ quantizer. Level l of L is the number (l − ⌊L / 2⌋) / ⌊L / 2⌋: from −1 up, to 1 where L is odd."""

    levels: Tensor  # (D, 1)
    radius: Tensor
    commits = False

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.config = config
        levels = torch.tensor(config.levels).view(-1, 1)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("radius", levels // 2, persistent=False)
        self.spacing = 1 / (max(config.levels) - 1)

    def prepare(self, z_e: Tensor) -> Tensor:
        """Return z_e bounded to the outermost levels, by a tanh that is 0 at 0."""
        reach = (self.levels - 1) * (1 + EDGE) / 2
        offset = (self.levels % 2 == 0) * 0.5  # an even number of levels has one more below 0 than above
        return (torch.tanh(z_e + torch.atanh(offset / reach)) * reach - offset) / self.radius

    def quantize(self, z_e: Tensor) -> Quantized:
        digits = (torch.round(z_e * self.radius) + self.radius).clamp(torch.zeros_like(self.levels), self.levels - 1)
        indices = to_index(rearrange(digits, "b d p -> b p d").nan_to_num(), self.config.levels)
        zero = z_e.new_zeros(())
        return Quantized(straight_through(z_e, self.lookup(indices)), indices, zero, zero, zero, z_e)

    def lookup(self, indices: Tensor) -> Tensor:
        digits = rearrange(to_digits(indices, self.config.levels), "b p d -> b d p")
        return (digits - self.radius) / self.radius
