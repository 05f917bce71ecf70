"""Steps that are skipped because a number in them is NaN or Inf: named, counted, and too many in a row refused.

A gradient that is not finite is not finite on every process, since it is the sum over them; so all decide alike.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.sharding import is_sharded

MOST_IN_A_ROW = 5


class MicroBatch:
    """The values and losses of one micro-batch, kept until its step is taken."""

    def __init__(self, name: str, values: Tensor, losses: Mapping[str, Tensor], rows: Tensor):
        """
        Args:
            name: of `values`, as a user would call them.
            values: (b, ...), what the model gave for each row.
            losses: scalars made of them.
            rows: (b,), which rows of train they are.
        """
        self.name, self.values, self.losses, self.rows = name, values.detach(), losses, rows

    def blame(self) -> str | None:
        """Return what is not finite: the values, with their rows, or the first such loss; None if all is finite."""
        bad = ~self.values.flatten(1).isfinite().all(1).cpu()
        if bad.any():
            rows = ", ".join(map(str, self.rows.cpu()[bad].tolist()[:8]))
            return (
                f"{self.name} is NaN or Inf for {int(bad.sum())} of {len(bad)} rows of the batch, rows {rows} of train"
            )
        return next((f"{name} is {value.item()}" for name, value in self.losses.items() if not value.isfinite()), None)


class SkippedSteps:
    """The number of steps that were skipped, in all and in a row; both are part of the training state."""

    def __init__(self, total: int = 0, in_a_row: int = 0, *, whose: str = "", remedy: str = "a lower lr"):
        """
        Args:
            whose: the words after "step 7" where the training has several models: " of the discriminator".
            remedy: the settings to change where steps are skipped again and again.
        """
        self.total, self.in_a_row = int(total), int(in_a_row)
        self.whose, self.remedy = whose, remedy

    def clip(self, step: int, model: nn.Module, most: float, parts: Sequence[MicroBatch]) -> bool:
        """Clip the gradient to the norm `most`, and return whether the step may be taken.

        If not, print to stderr what was not finite, where this process can tell.

        Args:
            parts: the step's micro-batches.
        Raises:
            UserError: this is the `MOST_IN_A_ROW`th step in a row that is not finite.
        """
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)  # by itself: to clip by NaN would make every gradient NaN
        whole = norm.full_tensor() if is_sharded(norm) else norm
        if torch.isfinite(whole):  # the one host sync of a step
            self.in_a_row = 0
            nn.utils.clip_grads_with_norm_(model.parameters(), most, norm)
            return True
        self.total += 1
        self.in_a_row += 1
        found = next((blame for part in parts if (blame := part.blame())), None)
        layer = first_not_finite(model.named_parameters())
        found = f"{found or 'every loss is finite'}; the first gradient that is not is {layer or 'of another process'}"
        print(f"step {step}{self.whose} skipped: {found}", file=sys.stderr)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"{self.in_a_row} steps{self.whose} in a row were not finite ({found}); what was saved before is "
                f"whole. Go on from it with --change_settings true and {self.remedy} or precision fp32, or look at "
                "those rows"
            )
        return False

    def state(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}


def first_not_finite(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Return the parameter whose gradient is the first of the backward pass to be NaN or Inf; None if none is."""
    for name, parameter in reversed(list(parameters)):
        gradient = parameter.grad
        here = gradient.to_local() if is_sharded(gradient) else gradient
        if here is not None and not here.isfinite().all():
            return name.removeprefix("module.")
    return None
