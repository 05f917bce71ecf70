"""The kinds of quantizer there are and the settings of each; `kind` selects one.

Of every kind the rest of the project reads four sizes:
    codebook_size   K, how many values a code has
    code_dim        D, channels between encoder and decoder
    code_depth      Q, codes a place of the grid: 1 but for `residual`
    factors         whole numbers whose product is K, the most significant first: (K,) for a table of vectors, the digits
                    a code is made of where there is no table
"""

from math import prod
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from smalti.common.config import Settings

MOST_CODES = 2**24  # counted one by one, also where there is no table of them
KIND = """`vq`: codebook loss; `vq_ema`: moving average; `simvq`: a frozen codebook under a learned map; `gumbel`: drawn
from a soft assignment; `fsq`: rounded numbers; `lfq`: signs; `residual`: several, each on what the ones before left"""


class TableConfig(Settings):
    """A quantizer with a table of K vectors."""

    codebook_size: int = Field(512, ge=2, le=MOST_CODES)
    """K, entries of the codebook"""
    code_dim: int = Field(8, ge=1, le=2**14)
    """D, dimensions of a codebook vector; a few are enough and keep every code in use (Yu et al. 2021, sec. 3.2)"""
    normalize: bool = True
    """l2-normalise codes and encoder outputs, so that nearest means the largest cosine (Yu et al. 2021, sec. 3.2)"""

    @property
    def code_depth(self) -> int:
        return 1

    @property
    def factors(self) -> tuple[int, ...]:
        return (self.codebook_size,)


Gradient = Literal["straight_through", "rotation"]


class VQConfig(TableConfig):
    """A codebook moved by the gradient of the codebook loss (van den Oord et al. 2017, eq. 3)."""

    kind: Annotated[Literal["vq"], Field(description=KIND)] = "vq"
    gradient: Gradient = "straight_through"
    """what the encoder gets: the decoder's gradient as it is, or turned as the code is turned from the encoder's output
    (Fifty et al. 2024)"""


class EMAVQConfig(TableConfig):
    """A codebook that follows the running mean of the encoder outputs assigned to it (van den Oord et al. 2017, app. A.1)."""

    kind: Annotated[Literal["vq_ema"], Field(description=KIND)] = "vq_ema"
    gradient: Gradient = "straight_through"
    """as of `vq`"""
    decay: float = Field(0.99, gt=0, lt=1)
    """gamma of the moving average: near 1 moves slowly"""


class SimVQConfig(TableConfig):
    """A frozen codebook under one learned linear map, so that every code moves with every step (Zhu et al. 2024)."""

    kind: Annotated[Literal["simvq"], Field(description=KIND)] = "simvq"
    gradient: Gradient = "straight_through"
    """as of `vq`"""


class GumbelConfig(TableConfig):
    """Codes drawn from a soft assignment, one-hot forward and soft backward (Jang et al. 2017; Ramesh et al. 2021)."""

    kind: Annotated[Literal["gumbel"], Field(description=KIND)] = "gumbel"
    temperature: float = Field(1.0, gt=0)
    """of the soft assignment at the first step"""
    final_temperature: float = Field(1 / 16, gt=0)
    """of the soft assignment when `annealed` of the steps are done, and after"""
    annealed: float = Field(0.75, gt=0, le=1)
    """share of the steps over which the temperature falls, geometrically"""
    kl_weight: float = Field(5e-4, ge=0)
    """on KL(q || uniform), the rate term of the ELBO under a uniform prior"""

    def temperature_at(self, progress: float) -> float:
        """Return the temperature when this share of the steps is done."""
        return self.temperature * (self.final_temperature / self.temperature) ** min(1.0, progress / self.annealed)


class FSQConfig(Settings):
    """No codebook: each of D numbers is bounded and rounded to a few levels (Mentzer et al. 2023)."""

    kind: Annotated[Literal["fsq"], Field(description=KIND)] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field((8, 8, 8), min_length=1)
    """values of each number; K is their product, 2^24 at most"""

    @model_validator(mode="after")
    def _counts(self) -> "FSQConfig":
        if self.codebook_size > MOST_CODES:
            raise ValueError(
                f"levels {self.levels} make {self.codebook_size} codes, more than 2^24; take fewer or smaller ones"
            )
        return self

    @property
    def codebook_size(self) -> int:
        return prod(self.levels)

    @property
    def code_dim(self) -> int:
        return len(self.levels)

    @property
    def code_depth(self) -> int:
        return 1

    @property
    def factors(self) -> tuple[int, ...]:
        return self.levels


class LFQConfig(Settings):
    """No codebook: the signs of D numbers, spread over all codes by entropy terms (Yu et al. 2023, MAGVIT-v2)."""

    kind: Annotated[Literal["lfq"], Field(description=KIND)] = "lfq"
    bits: int = Field(9, ge=1, le=24)
    """numbers a code, each -1 or 1; K is 2 to that power"""
    temperature: float = Field(1.0, gt=0)
    """of the soft assignment whose entropies are taken"""
    entropy_weight: float = Field(0.03, ge=0)
    """on the entropy terms: each place certain, all together spread"""
    spread: float = Field(1.0, ge=0)
    """weight of the second term against the first"""

    @property
    def codebook_size(self) -> int:
        return 2**self.bits

    @property
    def code_dim(self) -> int:
        return self.bits

    @property
    def code_depth(self) -> int:
        return 1

    @property
    def factors(self) -> tuple[int, ...]:
        return (2,) * self.bits


def _kind(quantizer: Any) -> str:
    return quantizer.get("kind", "vq") if isinstance(quantizer, dict) else getattr(quantizer, "kind", "")


SingleConfig = Annotated[
    Annotated[VQConfig, Tag("vq")]
    | Annotated[EMAVQConfig, Tag("vq_ema")]
    | Annotated[SimVQConfig, Tag("simvq")]
    | Annotated[GumbelConfig, Tag("gumbel")]
    | Annotated[FSQConfig, Tag("fsq")]
    | Annotated[LFQConfig, Tag("lfq")],
    Discriminator(_kind),
]


class ResidualConfig(Settings):
    """Q quantizers in turn, each on what the ones before it left (Lee et al. 2022; Zeghidour et al. 2021)."""

    kind: Annotated[Literal["residual"], Field(description=KIND)] = "residual"
    code_depth: int = Field(4, ge=2, le=64)
    """Q, quantizers stacked: codes a place of the grid"""
    each: SingleConfig = VQConfig()
    """every one of them, each with a codebook of its own"""

    @property
    def codebook_size(self) -> int:
        return self.each.codebook_size

    @property
    def code_dim(self) -> int:
        return self.each.code_dim

    @property
    def factors(self) -> tuple[int, ...]:
        return self.each.factors


QuantizerConfig = Annotated[
    Annotated[VQConfig, Tag("vq")]
    | Annotated[EMAVQConfig, Tag("vq_ema")]
    | Annotated[SimVQConfig, Tag("simvq")]
    | Annotated[GumbelConfig, Tag("gumbel")]
    | Annotated[FSQConfig, Tag("fsq")]
    | Annotated[LFQConfig, Tag("lfq")]
    | Annotated[ResidualConfig, Tag("residual")],
    Discriminator(_kind),
]
