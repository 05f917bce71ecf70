"""The order of training rows: a pure function of (seed, step), whatever the number of processes.

The rows of a set are dealt epoch after epoch, each a fresh permutation, as one endless sequence; step s takes places
[s G, (s + 1) G) of it, for a global batch of G. A process takes its share of them, in micro-batches when gradients
accumulate. Nothing is repeated, nothing dropped, and to resume is to start counting at another step. Where the global
batch changes in a run, the steps after it go on at the place that those before had come to.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smalti.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one process in each step's global batch, and its number of micro-batches."""

    batch_size: int  # G, over all processes and micro-batches
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        parts = self.accumulate * self.world
        if self.batch_size % parts:
            raise UserError(
                f"batch_size {self.batch_size} must divide by {self.world} processes times {self.accumulate} "
                f"micro-batches = {parts}; {max(1, round(self.batch_size / parts)) * parts} would"
            )

    def check_rows(self, rows: int, what: str, stage: str) -> None:
        """Raise `UserError` where a step takes more than all `rows`, which the message calls `what`."""
        if self.batch_size > rows:
            raise UserError(
                f"batch_size {self.batch_size} is more than the {rows} {what}; lower it in the config of the {stage}, "
                "or with --batch_size"
            )

    def check_least(self, images: int, why: str) -> None:
        """Raise `UserError` where a micro-batch has fewer images; `why` is what needs them."""
        if self.size < images:
            parts = self.accumulate * self.world
            raise UserError(
                f"{why} {images} images or more of a micro-batch, and batch_size {self.batch_size} over {self.world} "
                f"processes times {self.accumulate} micro-batches leaves {self.size}; take --batch_size "
                f"{images * parts} or more, or a smaller --accumulate"
            )

    @property
    def size(self) -> int:
        """Return the rows of one micro-batch on one process."""
        return self.batch_size // (self.accumulate * self.world)


class RowOrder:
    """An endless iterator over (rows (b,), epochs (b,)) int64, the micro-batches of this process from `first_step`."""

    def __init__(self, rows: int, seed: int, share: Share, first_step: int, dealt: int | None = None):
        """
        Args:
            dealt: places that the steps before the first took; by default as if all had the same global batch.
        """
        self.rows, self.seed, self.share = rows, seed, share
        self.dealt = first_step * share.batch_size if dealt is None else dealt
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        share, first = self.share, self.dealt
        while True:
            for micro in range(share.accumulate):
                start = first + (micro * share.world + share.rank) * share.size
                yield self.at(start, start + share.size)
            first += share.batch_size

    def at(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return places [start, stop) of the endless sequence."""
        epochs, places = np.divmod(np.arange(start, stop), self.rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = self._permuted(int(epoch))[places[inside]]
        return torch.from_numpy(rows), torch.from_numpy(epochs)

    def _permuted(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return self._permutation


def _leave_signals_to_the_loop(_worker: int) -> None:
    """Ignore Ctrl-C in a worker and let SIGTERM end it: the process that started it answers both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(dataset: Dataset, order: RowOrder, workers: int = 0) -> Iterator:
    """Yield `dataset[(rows, epochs)]` for each micro-batch of the order, read ahead by `workers` processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,  # the order yields whole batches
        sampler=order,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # a loader's iterator draws a number: not from the global generator
        worker_init_fn=_leave_signals_to_the_loop,
    )
    try:
        yield from loader
    except UserError as error:  # a worker's comes wrapped in its traceback
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
