"""A claim about us that a number can refute: a figure, a threshold, and the worst seed's value."""

import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

RELATIONS = {"at least": operator.ge, "at most": operator.le, "more than": operator.gt}


@dataclass(frozen=True, kw_only=True)
class Claim:
    text: str
    relation: str  # one of RELATIONS, of the value to the threshold
    threshold: float
    value: Callable[..., float]  # of one seed's figures: ours, then the peer's where there is one

    def judge(self, per_seed: Sequence[tuple[dict[str, Any], ...]]) -> dict[str, Any]:
        """Return the claim as a result records it. It holds if it holds for the worst seed."""
        values = [self.value(*figures) for figures in per_seed]
        worst = max(values) if self.relation == "at most" else min(values)
        holds = RELATIONS[self.relation](worst, self.threshold)
        judged = {"text": self.text, "relation": self.relation, "threshold": self.threshold}
        return judged | {"value": worst, "per_seed": values, "holds": holds}


def short(commit: str | None) -> str:
    """Return twelve digits of a commit, and whether the checkout had changes of its own."""
    number, dash, dirty = (commit or "none").partition("-")
    return f"{number[:12]}{dash}{dirty}"


def verdict(judged: dict[str, Any]) -> str:
    """Return a line about a judged claim to print."""
    word = "holds" if judged["holds"] else "FAILS"
    return f"{word}  {judged['text']}: {judged['value']:.3f} ({judged['relation']} {judged['threshold']})"


def mean_and_spread(per_seed: Sequence[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return mean, standard deviation (None for one seed), minimum and maximum of each figure that every seed has."""
    shared = [key for key in per_seed[0] if all(key in figures for figures in per_seed)]
    columns = {key: [figures[key] for figures in per_seed] for key in shared}
    return {
        key: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "min": min(values),
            "max": max(values),
        }
        for key, values in columns.items()
    }
