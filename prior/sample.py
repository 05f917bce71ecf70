"""Draw code sequences from the prior, whole or around codes that are known.

B images of T codes from a codebook of K:  condition (B, ...), seeds (B,) -> codes (B, T), int64 in [0, K).

All the randomness of an image is one uniform number for each part of each code, from its own seed, and batches have a
fixed, padded size. So an image depends neither on its place in the batch nor on the process that draws it.
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

BATCH = {"cpu": 64, "cuda": 256}  # images a batch if memory holds them: larger batches gain little
SPARE = 0.5  # share of the free memory that a batch may take: other programs and uncounted tensors need the rest


class Drawing(Protocol):
    """The state of one batch that is being drawn. It takes the weights as they are when it is made."""

    def draw(
        self, condition: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int
    ) -> Tensor:
        """Return codes (b, T) of at most a batch of images, whose order begins with `lead` known places.

        Args:
            condition: (b, ...).
            codes: (b, T), read at the known places.
            order: (b, P), the places in the order in which they are predicted.
            given: (b, P) bool, known places, in that order.
        """


class DrawsInSteps(Protocol):
    """The methods of a prior that a sampler calls; `prior.autoregressive.AutoregressivePrior` documents them."""

    config: PriorConfig

    @property
    def device(self) -> torch.device: ...

    def check(self, latents: Tensor, condition: Tensor, known: Tensor | None = None) -> None: ...

    def resolved(self, precision: Precision) -> Precision: ...

    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> Drawing: ...

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int: ...


class BatchSampler:
    """A sampler of one prior with one setting, in batches of one size.

    It takes the weights as they are when it is made.
    """

    def __init__(self, prior: DrawsInSteps, config: SamplingConfig, batch_size: int | None = None):
        """
        Args:
            batch_size: images a batch, the last one padded; by default as many as memory holds, at most `BATCH`.
        Raises:
            ValueError: a batch size below 1, or int8 on another device than a CPU.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.prior = prior
        self.config = config
        self.device = prior.device
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
        """Return one sequence an image. Known codes are kept, and the others drawn around them.

        Args:
            condition: (B, ...), as the prior's condition has it.
            seeds: one an image; the same weights, condition, seed and known codes give the same codes.
            latents: codes (B, T), read at the known places.
            known: (B, P) bool, places whose codes are kept. A prior trained in every order draws the others given all
                known codes, one trained in raster order given the known codes before them.
            progress: called with the number of images of each batch that is done.
        Returns:
            (B, T) int64.
        Raises:
            ValueError: not one seed an image, a condition the prior does not know, or codes or a mask of another shape.
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
            codes = codes.masked_fill(~known.bool().repeat_interleave(c.layout.depth, 1), 0)  # they are not read there
        self.prior.check(codes, condition, known)
        drawn = codes.clone()  # images known whole stay as they are
        order = known_first(known) if c.any_order else raster(len(condition), c.layout.places, self.device)
        given = known.gather(1, order)  # (B, P), known places in the order
        lead = given.long().cumprod(1).sum(1)  # number of known places at the beginning of the order
        for places in lead[lead < c.layout.places].unique().tolist():
            for rows in (lead == places).nonzero()[:, 0].split(self.batch_size):
                some = [seeds[i] for i in rows.tolist()]
                drawn[rows] = self._draw(condition[rows], some, codes[rows], order[rows], given[rows], places)
                progress(len(rows))
        return drawn

    def _draw(
        self, condition: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int
    ) -> Tensor:
        """Return the codes of at most one batch. Halves the batch size while memory does not hold the batch."""
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
                gc.collect()  # captured graphs and the state they read form reference cycles
                torch.cuda.empty_cache()
            warnings.warn(f"memory is full: going on with batches of {self.batch_size} images", stacklevel=3)


def fitting_batch(prior: DrawsInSteps, config: SamplingConfig, precision: Precision) -> int:
    """Return the images of a batch: `BATCH` of the device, halved until drawing fits into half of the free memory."""
    cuda = prior.device.type == "cuda"
    free = torch.cuda.mem_get_info(prior.device)[0] if cuda else psutil.virtual_memory().available
    batch = BATCH.get(prior.device.type, BATCH["cpu"])
    while batch > 1 and prior.drawing_bytes(config, batch, precision) > SPARE * free:
        batch //= 2
    return batch


def _out_of_memory(error: Exception) -> bool:
    messages = ("not enough memory", "can't allocate memory")  # of the CPU's allocator
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in messages)
