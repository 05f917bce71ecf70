"""The facts about a codebook that advice depends on, as its own kind states them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEW_DIMENSIONS = 8  # of a codebook's vectors keep more codes in use than many do (Yu et al. 2021, sec. 3.2)


@dataclass(frozen=True)
class CodebookFacts:
    """The facts about codes of any kind, which may be no table of vectors; a kind that knows better overrides them."""

    kind: str  # of what makes the codes, in words of the settings
    dim: int  # D
    at: str  # what stands before its settings' names, as model.quantizer.; nothing where it has none

    cause = "the encoder's outputs leave combinations of digits out"  # of codes that are never used
    fitted = True  # whether the codes were fitted to these images

    @property
    def size(self) -> str | None:
        """Return the name of the setting that decides K, if one does."""
        return None

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        """Return the settings that bring more codes into use, without those that are so already.

        Args:
            revive_below: the training's setting, where there was a training.
        """
        return ["more steps", f"{self.at}kind vq_ema or simvq"]

    def fewer(self, wanted: float, codebook_size: int) -> str:
        """Return how to get about `wanted` codes, which are fewer than the `codebook_size` there are."""
        return f"settings that make about {max(2, round(wanted)):,} codes"

    def apart(self) -> Sequence[str]:
        """Return the settings that keep codes from being near-duplicates, besides fewer codes."""
        return []

    def without(self, idle: Sequence[str], kept: int) -> str:
        """Return how to do without the codebooks of these names, so that `kept` are left: depths of a stack."""
        one = f"model.quantizer.kind {self.kind}, which has one depth"
        return f"model.quantizer.code_depth {kept}" if kept > 1 else one


def power_of_two(wanted: float, codebook_size: int) -> int:
    """Return the exponent of the power of two nearest above `wanted`, and below `codebook_size`."""
    return max(1, min(math.ceil(math.log2(max(2.0, wanted))), math.ceil(math.log2(codebook_size)) - 1))


class SizedFacts(CodebookFacts):
    """The facts about codes whose number is a setting, `codebook_size`."""

    @property
    def size(self) -> str:
        return f"{self.at}codebook_size"

    def fewer(self, wanted: float, codebook_size: int) -> str:
        return f"{self.size} {2 ** power_of_two(wanted, codebook_size)}"


@dataclass(frozen=True)
class TableFacts(SizedFacts):
    """The facts about a quantizer's table of vectors."""

    normalize: bool = True

    cause = "the encoder's outputs lie near few of the codebook's vectors"

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        found = [] if self.normalize else [f"{self.at}normalize true"]
        found += [f"{self.at}code_dim {FEW_DIMENSIONS}"] if self.dim > FEW_DIMENSIONS else []
        wanted = max(0.05, 2 * (revive_below or 0))
        found += [f"revive_below {wanted:g}"] if wanted < 1 else []
        others = [kind for kind in ("vq_ema", "simvq") if kind != self.kind]
        return [*found, *self.more_settings(), f"{self.at}kind {' or '.join(others)}"]

    def more_settings(self) -> Sequence[str]:
        """Return the settings of this kind alone that bring more codes into use."""
        return []

    def apart(self) -> Sequence[str]:
        few = self.dim < FEW_DIMENSIONS
        return [f"{self.at}code_dim {FEW_DIMENSIONS}, which leaves them more room"] if few else []


@dataclass(frozen=True)
class FactsOfSeveral(CodebookFacts):
    """The facts about several codebooks of one kind, which are those of one of them; `without` depends on the model."""

    of_each: CodebookFacts

    @property
    def cause(self) -> str:  # type: ignore[override]  # of the kind inside
        return self.of_each.cause

    @property
    def size(self) -> str | None:
        return self.of_each.size

    def wider_use(self, revive_below: float | None) -> Sequence[str]:
        return self.of_each.wider_use(revive_below)

    def fewer(self, wanted: float, codebook_size: int) -> str:
        return self.of_each.fewer(wanted, codebook_size)

    def apart(self) -> Sequence[str]:
        return self.of_each.apart()
