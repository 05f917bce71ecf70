"""Steps that are not taken because a number in them is NaN or Inf: named, counted, and too many in a row refused.

A gradient that is not finite is not finite on every process, since it is the sum over them; so all decide alike.
"""

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.errors import UserError

MOST_IN_A_ROW = 5


class SkippedSteps:
    """How many steps were not taken, in all and in a row; both are part of the training state."""

    def __init__(self, total: int = 0, in_a_row: int = 0):
        self.total, self.in_a_row = total, in_a_row

    def check(self, step: int, gradient_norm: Tensor, parts: Sequence["Part"]) -> bool:
        """Whether the step may be taken. If not, says on stderr what was not finite, where this process can tell.

        Args:
            gradient_norm: (), of all parameters; reading it is the one host sync of a step.
            parts: the step's micro-batches.
        Raises:
            UserError: this is the `MOST_IN_A_ROW`th step in a row that is not finite.
        """
        if torch.isfinite(gradient_norm):
            self.in_a_row = 0
            return True
        self.total += 1
        self.in_a_row += 1
        found = next((blame for part in parts if (blame := part.blame())), "the gradient is NaN or Inf")
        print(f"step {step} skipped: {found}", file=sys.stderr)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"{self.in_a_row} steps in a row were not finite ({found}); what was saved before is whole. Begin another "
                "--run with a lower lr or precision fp32, or look at the images of those rows"
            )
        return False


class Part:
    """What is kept of one micro-batch until its step is taken."""

    def __init__(self, z_e: Tensor, losses: Mapping[str, Tensor], rows: Tensor):
        self.z_e, self.losses, self.rows = z_e.detach(), losses, rows

    def blame(self) -> str | None:
        """What of it is not finite, first things first."""
        bad = ~self.z_e.flatten(1).isfinite().all(1).cpu()
        if bad.any():
            rows = ", ".join(map(str, self.rows[bad].tolist()[:8]))
            return f"the encoder's output is NaN or Inf for {int(bad.sum())} of {len(bad)} images, rows {rows} of train"
        return next((f"{name} is {value.item()}" for name, value in self.losses.items() if not value.isfinite()), None)
