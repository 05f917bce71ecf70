"""The settings of every bottleneck, each kind with the file that has its paper and equation, and the sizes that the
rest of the project reads.

size       K, how many values a code has
dim        D, channels between encoder and decoder
depth      Q, codes a place: 1 but for `residual`
factors    whole numbers whose product is K, most significant first: (K,) for a table of vectors, the digits a code is
           made of where there is no table
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from smalti.common.config import Kind, declared
from smalti.common.layout import MOST_CODES
from smalti.tokenizer.codebooks.facts import CodebookFacts, TableFacts, power_of_two

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
    def commits(self) -> bool:
        """Return whether the encoder is asked to stay near the codes, by a commitment loss."""
        return True

    @property
    def revives(self) -> bool:
        """Return whether there is a table of vectors, whose dead codes are revived."""
        return False

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

    @property
    def revives(self) -> bool:
        return True

    def facts(self, at: str) -> TableFacts:
        return TableFacts(self.name(), self.dim, at, self.normalize)


class NearestConfig(TableConfig):
    """The nearest of K vectors, and an estimate of the gradient through that choice."""

    gradient: Gradient = "straight_through"
    """what the encoder gets: the decoder's gradient as it is, or turned as the code is turned from the encoder's output
    (Fifty et al. 2024)"""


@declared("smalti.tokenizer.bottleneck.vq")
class VQConfig(NearestConfig):
    """A codebook moved by the gradient of the codebook loss (van den Oord et al. 2017, eq. 3)."""

    kind: Literal["vq"] = "vq"
    """codebook loss"""


@declared("smalti.tokenizer.bottleneck.vq_ema")
class EMAVQConfig(NearestConfig):
    """A codebook that follows the running mean of encoder outputs assigned to it (van den Oord et al. 2017, A.1)."""

    kind: Literal["vq_ema"] = "vq_ema"
    """moving average"""
    decay: float = Field(0.99, gt=0, lt=1)
    """gamma of the moving average: near 1 moves slowly"""


@declared("smalti.tokenizer.bottleneck.gumbel")
class GumbelConfig(TableConfig):
    """Codes drawn from a soft assignment, one-hot forward and soft backward (Jang et al. 2017; Ramesh et al. 2021)."""

    draws: ClassVar[bool] = True

    kind: Literal["gumbel"] = "gumbel"
    """drawn from a soft assignment"""
    temperature: float = Field(1.0, gt=0)
    """of the soft assignment at the first step"""
    final_temperature: float = Field(1 / 16, gt=0)
    """of the soft assignment when `annealed` of the steps are done, and after"""
    annealed: float = Field(0.75, gt=0, le=1)
    """share of the steps over which the temperature falls, geometrically"""
    kl_weight: float = Field(5e-4, ge=0)
    """on KL(q || uniform), the rate term of the ELBO under a uniform prior"""

    @property
    def commits(self) -> bool:
        return False

    def temperature_at(self, progress: float) -> float:
        """Return the temperature when this share of the steps is done."""
        return self.temperature * (self.final_temperature / self.temperature) ** min(1.0, progress / self.annealed)

    def scheduled(self, progress: float) -> dict[str, float]:
        return {"temperature": self.temperature_at(progress)}

    def facts(self, at: str) -> "GumbelFacts":
        return GumbelFacts(self.name(), self.dim, at, self.normalize)


class GumbelFacts(TableFacts):
    """The facts about codes that are drawn."""

    def more_settings(self) -> Sequence[str]:
        return [f"a larger {self.at}kl_weight"]


@declared("smalti.tokenizer.bottleneck.fsq")
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
    def commits(self) -> bool:
        return False

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


@declared("smalti.tokenizer.bottleneck.lfq")
class LFQConfig(SingleConfig):
    """No codebook: the signs of D numbers, spread over all codes by entropy terms (Yu et al. 2023, MAGVIT-v2)."""

    kind: Literal["lfq"] = "lfq"
    """signs"""
    bits: int = Field(9, ge=1, le=24)
    """numbers a code, each -1 or 1; K is 2 to that power"""
    temperature: float = Field(1.0, gt=0)
    """of the soft assignment whose entropies are taken"""
    entropy_weight: float = Field(0.03, ge=0)
    """on the entropy terms: each place certain, all together spread"""
    spread: float = Field(1.0, ge=0)
    """weight of the second term against the first"""

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def factors(self) -> tuple[int, ...]:
        return (2,) * self.bits

    def facts(self, at: str) -> "LFQFacts":
        return LFQFacts(self.name(), self.dim, at)


class LFQFacts(CodebookFacts):
    """The facts about codes of signs."""

    cause = "the encoder's outputs leave combinations of signs out"

    @property
    def size(self) -> str:
        return f"{self.at}bits"

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        return [f"a larger {self.at}entropy_weight", f"a larger {self.at}spread"]

    def fewer(self, wanted: float, codebook_size: int) -> str:
        return f"{self.size} {power_of_two(wanted, codebook_size)}"


@declared("smalti.tokenizer.bottleneck.simvq")
class SimVQConfig(NearestConfig):
    """A frozen codebook under one learned linear map, so that every code moves with every step (Zhu et al. 2024)."""

    kind: Literal["simvq"] = "simvq"
    """a frozen codebook under a learned map"""


@declared("smalti.tokenizer.bottleneck.residual")
class ResidualConfig(BottleneckConfig):
    """Q quantizers in turn, each on what the ones before it left (Lee et al. 2022; Zeghidour et al. 2021)."""

    kind: Literal["residual"] = "residual"
    """several, each on what the ones before left"""
    code_depth: int = Field(4, ge=2, le=64)
    """Q, quantizers stacked: codes a place of the grid"""
    each: SingleConfig = VQConfig()
    """every one of them, each with a codebook of its own"""

    @property
    def depth(self) -> int:
        return self.code_depth

    @property
    def commits(self) -> bool:
        return self.each.commits

    @property
    def revives(self) -> bool:
        return self.each.revives

    @property
    def dim(self) -> int:
        return self.each.dim

    @property
    def factors(self) -> tuple[int, ...]:
        return self.each.factors

    def scheduled(self, progress: float) -> dict[str, float]:
        return self.each.scheduled(progress)

    def facts(self, at: str) -> CodebookFacts:
        return self.each.facts(f"{at}each.")
