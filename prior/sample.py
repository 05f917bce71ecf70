"""Draw code sequences from the prior, whole or around codes that are known.

B images of T codes from a codebook of K:  condition (B, ...), seeds (B,) -> codes (B, T), int64 in [0, K).

All the randomness of an image is T uniform numbers from its own seed (times the parts a code is drawn in), and a batch
has a fixed, padded size, so that an image is the same wherever in the batch it stands and whichever process draws it.
"""

import gc
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import psutil
import torch
from torch import Tensor

from smalti.prior.config import PriorConfig
from smalti.prior.draw import Precision, SamplingConfig
from smalti.prior.prediction_order import known_first, raster

BATCH = {"cpu": 64, "cuda": 256}  # images a batch where memory does not ask for fewer: more gain little
SPARE = 0.5  # of the free memory is left to others and to what is not counted


class Drawing(Protocol):
    """The state of one batch that is being drawn, with weights as they were when it was made."""

    def draw(
        self, condition: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int
    ) -> Tensor:
        """Return codes (b, T) of up to a batch of images whose order begins with `lead` known places: condition (b,),
        codes (b, T), order (b, P) and given (b, P) in the order."""


class DrawsInSteps(Protocol):
    """What a sampler asks of a prior: `prior.autoregressive.AutoregressivePrior` says what each is."""

    config: PriorConfig

    @property
    def device(self) -> torch.device: ...

    def check(self, latents: Tensor, condition: Tensor, known: Tensor | None = None) -> None: ...

    def resolved(self, precision: Precision) -> Precision: ...

    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> Drawing: ...

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int: ...


class BatchSampler:
    """Draws from one prior with one setting, in batches of one size. The weights are taken as they are when it is
    made."""

    def __init__(self, prior: DrawsInSteps, config: SamplingConfig, batch_size: int | None = None):
        """
        Args:
            batch_size: images a batch, of which the last is padded; as many as memory holds, up to `BATCH`, when not
                given.
        Raises:
            ValueError: int8 on another device than a CPU.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.prior, self.config, self.device = prior, config, prior.device
        self.precision = prior.resolved(config.precision)
        self.batch_size = batch_size or fitting_batch(prior, config, self.precision)
        self._batch: Drawing | None = None

    def __call__(
        self,
        condition: Tensor,
        seeds: Sequence[int],
        latents: Tensor | None = None,
        known: Tensor | None = None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """One sequence an image; where codes are known, they are kept and the others drawn around them.

        Args:
            condition: (B, ...), as the prior's condition has it.
            seeds: B of them; the same weights, label, seed and known codes give the same codes.
            latents: codes (B, T), read at the known places.
            known: (B, P) bool, places whose codes are kept. A prior trained in every order draws the others given all
                known ones, one trained in raster order given those that stand before them.
            progress: called with the number of images of each batch that is done.
        Returns:
            (B, T) int64.
        Raises:
            ValueError: not one seed a sample, a condition the prior does not know, codes or a mask of another shape.
        """
        if len(seeds) != len(condition):
            raise ValueError(f"one seed an image: got {len(condition)} images and {len(seeds)} seeds")
        with torch.inference_mode(), torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return self._around(condition, seeds, latents, known, progress)

    def _around(
        self,
        condition: Tensor,
        seeds: Sequence[int],
        codes: Tensor | None,
        known: Tensor | None,
        progress: Callable[[int], object],
    ) -> Tensor:
        c = self.prior.config
        if (codes is None) != (known is None):
            raise ValueError("latents and known are given together or not at all")
        if codes is None or known is None:
            codes = torch.zeros(len(condition), c.layout.length, dtype=torch.int64)
            known = torch.zeros(len(condition), c.layout.places, dtype=torch.bool)
        condition, codes, known = condition.to(self.device), codes.to(self.device), known.to(self.device)
        if known.shape == (len(codes), c.layout.places) and codes.shape == (len(codes), c.layout.length):
            codes = codes.masked_fill(~known.bool().repeat_interleave(c.layout.depth, 1), 0)  # not read there
        self.prior.check(codes, condition, known)
        drawn = codes.clone()  # of images known whole, and else overwritten
        order = known_first(known) if c.any_order else raster(len(condition), c.layout.places, self.device)
        given = known.gather(1, order)  # (B, P), in the order
        lead = given.long().cumprod(1).sum(1)  # known places that the order begins with
        for places in lead[lead < c.layout.places].unique().tolist():
            for rows in (lead == places).nonzero()[:, 0].split(self.batch_size):
                some = [seeds[i] for i in rows.tolist()]
                drawn[rows] = self._draw(condition[rows], some, codes[rows], order[rows], given[rows], places)
                progress(len(rows))
        return drawn

    def _draw(
        self, condition: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int
    ) -> Tensor:
        """One batch, or fewer images; in halves when memory does not hold it."""
        while True:
            try:
                self._batch = self._batch or self.prior.drawing(self.config, self.batch_size, self.precision)
                parts = [
                    self._batch.draw(condition[i], [seeds[j] for j in i.tolist()], codes[i], order[i], given[i], lead)
                    for i in torch.arange(len(condition), device=self.device).split(self.batch_size)
                ]
                return torch.cat(parts)
            except RuntimeError as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
            self._batch, self.batch_size = None, -(-self.batch_size // 2)
            if self.device.type == "cuda":
                gc.collect()  # captured graphs and the state they read refer to each other
                torch.cuda.empty_cache()
            warnings.warn(f"memory is full: going on with batches of {self.batch_size} images", stacklevel=3)


def fitting_batch(prior: DrawsInSteps, config: SamplingConfig, precision: Precision) -> int:
    """Images a batch: `BATCH` of the device, halved until what drawing takes fits into half of the memory that is
    free."""
    cuda = prior.device.type == "cuda"
    free = torch.cuda.mem_get_info(prior.device)[0] if cuda else psutil.virtual_memory().available
    batch = BATCH.get(prior.device.type, BATCH["cpu"])
    while batch > 1 and prior.drawing_bytes(config, batch, precision) > SPARE * free:
        batch //= 2
    return batch


def _out_of_memory(error: Exception) -> bool:
    told = ("not enough memory", "can't allocate memory")  # by the CPU's allocator
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)
