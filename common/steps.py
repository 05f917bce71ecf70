"""The steps of a training, and what is due after each: the same for both stages.

    with Steps(c, first, accelerator, "tokenizer") as steps:
        for step in steps:
            ...                                  # one optimizer step
            for due in steps.after(step, skipped):
                if due == "log": ...             # then "evaluate", then "save"

The last step logs, evaluates and saves whatever the settings are. A training that is told to stop saves first.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol, Self

from accelerate import Accelerator

from smalti.common.finite import SkippedSteps
from smalti.common.launch import Interrupt, Interrupted
from smalti.common.progress import progress_bar

Due = Literal["log", "evaluate", "save"]


class Paced(Protocol):
    """Settings that say when something is due."""

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps."""

    @property
    def log_every(self) -> int:
        """Return the steps between lines of metrics.jsonl."""

    @property
    def evaluate_every(self) -> int:
        """Return the steps between evaluations."""

    @property
    def save_every(self) -> int:
        """Return the steps between saved states."""


class Steps:
    """The remaining steps of a training, with a progress bar, in a context that answers Ctrl-C and SIGTERM."""

    def __init__(self, c: Paced, first: int, accelerator: Accelerator, what: str):
        self.c, self.first = c, first
        self.interrupt, self.shown = Interrupt(accelerator), dict[str, Any]()
        self.bar = progress_bar(accelerator, c.steps, what, initial=first)

    def __enter__(self) -> Self:
        self.interrupt.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.interrupt.__exit__(*error)
        self.bar.close()

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.c.steps))

    def show(self, **figures: str) -> None:
        """Show figures beside the progress bar, replacing older ones of the same names."""
        self.shown |= figures
        self.bar.set_postfix(**self.shown, refresh=False)

    def after(self, step: int, *skipped: SkippedSteps) -> Iterator[Due]:
        """Yield what is due after a step, in this order.

        Nothing is evaluated or saved while steps of a model are skipped one after the other: its weights may be what is
        wrong.

        Raises:
            Interrupted: the training was told to stop, and has saved what is sound.
        """
        done, last = step + 1, step + 1 == self.c.steps
        self.bar.update()
        if done % self.c.log_every == 0 or last:
            yield "log"
        sound = all(each.in_a_row == 0 for each in skipped) or last
        if sound and (done % self.c.evaluate_every == 0 or last):
            yield "evaluate"
        interrupted = self.interrupt.asked(done) and not last
        if sound and (done % self.c.save_every == 0 or last or interrupted):
            yield "save"
        if interrupted:
            what = "saved" if sound else "last saved before the steps skipped"
            raise Interrupted(f"{what} at step {done} of {self.c.steps}; the same command goes on from there")
