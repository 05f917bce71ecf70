"""Draw latents from the prior, whole or around places that are known.

B images of T numbers:  condition (B, ...), seeds (B,) -> codes (B, T) int64 in [0, K), or vectors (B, T) float32.

All the randomness of an image comes from its own seed, and a request is drawn in batches of one size, of so many rows
that each is computed as in a large batch. So an image depends neither on its place in the batch, nor on how many are
asked for with it, nor on the process that draws it.
"""

import gc
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import psutil
import torch
from torch import Tensor

from smalti.prior.base import Unfolding
from smalti.prior.config import PriorConfig
from smalti.prior.prediction_order import known_first, raster
from smalti.prior.sampling_config import Precision, SamplingConfig

BATCH = {"cpu": 64, "cuda": 256}  # images a batch if memory holds them: larger batches gain little
# Rows from which the products of MKL and oneDNN on a CPU compute each as they do among 64; one to three take other
# kernels, which round otherwise, and up to `prior.fast.matrix.FEW` rows small bf16 matrices are kept in fp32.
ALIKE: dict[Precision, int] = {"fp32": 4, "bf16": 8, "int8": 1}  # int8 is for single images, whose time it is
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


class HintedDrawing(Protocol):
    """A drawing that may be told something of each place."""

    def draw(
        self,
        condition: Tensor,
        seeds: list[int],
        codes: Tensor,
        order: Tensor,
        given: Tensor,
        lead: int,
        hint: Tensor | None = None,
    ) -> Tensor:
        """Return codes (b, T), as `Drawing` says; the hint is (b, P, C)."""


class Batch(NamedTuple):
    """The conditions, seeds and known latents that B samples are drawn from."""

    condition: Tensor  # (B, ...)
    seeds: list[int]
    latents: Tensor  # (B, T), read at the known places
    known: Tensor  # (B, P) bool


class DrawsInBatches(Protocol):
    """The methods of a prior that every sampler calls; `prior.base.Prior` documents the first ones."""

    config: PriorConfig

    @property
    def device(self) -> torch.device: ...

    def check(self, latents: Tensor, condition: Tensor, known: Tensor | None = None) -> None: ...

    def resolved(self, precision: Precision) -> Precision:
        """Return the precision to draw in. Raises ValueError if this prior has no such precision."""

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        """Return about how much memory a batch takes."""


class DrawsInSteps(DrawsInBatches, Protocol):
    """A prior that draws one code after the other."""

    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> Drawing:
        """Return the state of a batch that is drawn with these settings at a resolved precision."""


class DrawsInPasses(DrawsInBatches, Protocol):
    """A prior that draws all of a batch in passes."""

    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the samples after each pass, at last as they are returned."""


class BatchSampler(ABC):
    """A sampler of one prior with one setting. It draws each request in batches of one size, the last one padded.

    It takes the weights as they are when it is made.
    """

    def __init__(self, prior: DrawsInBatches, config: SamplingConfig, batch_size: int | None = None):
        """
        Args:
            batch_size: images a batch; by default as many as a request has and memory holds, at most `BATCH`.
        Raises:
            ValueError: a batch size below 1, or int8 on another device than a CPU.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.config = config
        self.device = prior.device
        self.precision = prior.resolved(config.precision)
        self.most = batch_size or fitting_batch(prior, config, self.precision)
        self.batch_size = self.most  # of the present request
        self.chosen = batch_size is None and self.device.type == "cpu"  # on CUDA graphs are captured for one size
        self._prior = prior

    def __call__(
        self,
        condition: Tensor,
        seeds: Sequence[int],
        latents: Tensor | None = None,
        known: Tensor | None = None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """Return one sample an image. Known latents are kept, and the others drawn around them.

        Args:
            condition: (B, ...), as the prior's condition has it.
            seeds: one an image; the same weights, condition, seed and known latents give the same latents.
            latents: (B, T), read at the known places.
            known: (B, P) bool, places whose latents are kept. A prior of raster order draws the others given the known
                ones before them, every other kind given all known ones.
            progress: called with the number of images of each batch that is done.
        Returns:
            (B, T).
        Raises:
            ValueError: not one seed an image, a condition the prior does not know, or latents or a mask of another
                shape.
        """
        if len(seeds) != len(condition):
            raise ValueError(f"one seed an image: got {len(condition)} images and {len(seeds)} seeds")
        if (latents is None) != (known is None):
            raise ValueError("latents and known are given together or not at all")
        layout = self._prior.config.layout
        if latents is None or known is None:
            kind = torch.int64 if layout.discrete else torch.float32
            latents = torch.zeros(len(condition), layout.length, dtype=kind)
            known = torch.zeros(len(condition), layout.places, dtype=torch.bool)
        condition, latents, known = condition.to(self.device), latents.to(self.device), known.to(self.device)
        if known.shape == (len(latents), layout.places) and latents.shape == (len(latents), layout.length):
            latents = latents.masked_fill(~known.bool().repeat_interleave(layout.depth, 1), 0)  # not read there
        self._prior.check(latents, condition, known)
        if (size := self.suited(len(condition))) != self.batch_size:
            self.release()
            self.batch_size = size
        with torch.inference_mode(), torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            found = self.around(Batch(condition, list(seeds), latents, known), progress)
        return found.clone()  # which is no tensor of the inference mode, that nobody could change

    @abstractmethod
    def around(self, asked: Batch, progress: Callable[[int], object]) -> Tensor:
        """Return the samples (B, T) of checked arguments, which may be more than a batch."""

    def suited(self, images: int) -> int:
        """Return the size of the batches in which to draw so many images: the fewest batches, alike."""
        if not self.chosen or images == 0:
            return self.most
        batches = -(-images // self.most)
        least = -(-ALIKE.get(self.precision, max(ALIKE.values())) // self.rows)  # auto: each part has its own
        return min(self.most, max(-(-images // batches), least))

    @property
    @abstractmethod
    def rows(self) -> int:
        """Return the rows that an image has in the smallest product."""

    def release(self) -> None:
        """Let go of what a batch of the present size holds, if anything."""
        return None

    def in_batches(self, rows: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `draw(rows)` of all rows (B,), at most a batch at once.

        The batch size is halved while memory does not hold a batch.
        """
        while True:
            try:
                return torch.cat([draw(some) for some in rows.split(self.batch_size)])
            except RuntimeError as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
            self.release()
            self.most = self.batch_size = -(-self.batch_size // 2)
            if self.device.type == "cuda":
                gc.collect()  # captured graphs and the state they read form reference cycles
                torch.cuda.empty_cache()
            warnings.warn(f"memory is full: going on with batches of {self.batch_size} images", stacklevel=4)

    def padded(self, images: int) -> Tensor:
        """Return the rows (batch_size,) of a whole batch, where the last image stands in for those that are missing."""
        return torch.arange(self.batch_size, device=self.device).clamp_max(images - 1)


class StepSampler(BatchSampler):
    """A sampler of codes, one after the other in an order. Known codes at the beginning of the order cost no step."""

    def __init__(self, prior: DrawsInSteps, config: SamplingConfig, batch_size: int | None = None):
        super().__init__(prior, config, batch_size)
        self.prior = prior
        self._batch: Drawing | None = None

    @property
    def rows(self) -> int:
        return 2 if self.config.guidance != 1 else 1

    def around(self, asked: Batch, progress: Callable[[int], object]) -> Tensor:
        condition, seeds, latents, known = asked
        c, drawn = self.prior.config, latents.clone()  # images known whole stay as they are
        order = known_first(known) if c.any_order else raster(len(condition), c.layout.places, self.device)
        given = known.gather(1, order)  # (B, P), known places in the order
        lead = given.long().cumprod(1).sum(1)  # number of known places at the beginning of the order

        def draw(rows: Tensor) -> Tensor:
            self._batch = self._batch or self.prior.drawing(self.config, self.batch_size, self.precision)
            some = [seeds[i] for i in rows.tolist()]
            return self._batch.draw(condition[rows], some, latents[rows], order[rows], given[rows], places)

        for places in lead[lead < c.layout.places].unique().tolist():
            for rows in (lead == places).nonzero()[:, 0].split(self.batch_size):
                drawn[rows] = self.in_batches(rows, draw)
                progress(len(rows))
        return drawn

    def release(self) -> None:
        self._batch = None


class PassSampler(BatchSampler):
    """A sampler of whole samples, in passes over all of a batch."""

    def __init__(self, prior: DrawsInPasses, config: SamplingConfig, batch_size: int | None = None):
        super().__init__(prior, config, batch_size)
        self.prior = prior

    @property
    def rows(self) -> int:
        return min(grid.places for grid in self.prior.config.layout.grids) * (2 if self.config.guidance != 1 else 1)

    def passes(self, batch: Batch) -> Iterator[Unfolding]:
        """Yield the samples of a batch after each pass."""
        return self.prior.passes(batch, self.config, self.precision)

    def around(self, asked: Batch, progress: Callable[[int], object]) -> Tensor:
        condition, seeds, latents, known = asked

        def draw(rows: Tensor) -> Tensor:
            whole = rows[self.padded(len(rows))]
            batch = Batch(condition[whole], [seeds[i] for i in whole.tolist()], latents[whole], known[whole])
            last = latents[whole]
            for unfolding in self.passes(batch):
                last = unfolding.latents
            return last[: len(rows)]

        drawn = latents.clone()  # images known whole stay as they are
        unknown = (~known.all(1)).nonzero()[:, 0]
        for rows in unknown.split(self.batch_size) if len(unknown) else ():
            drawn[rows] = self.in_batches(rows, draw)
            progress(len(rows))
        return drawn


def fitting_batch(prior: DrawsInBatches, config: SamplingConfig, precision: Precision) -> int:
    """Return the images of a batch: `BATCH` of the device, halved until drawing fits into half of the free memory."""
    cuda = prior.device.type == "cuda"
    free = torch.cuda.mem_get_info(prior.device)[0] if cuda else psutil.virtual_memory().available
    if cuda:  # what torch holds and nobody uses is free too
        free += torch.cuda.memory_reserved(prior.device) - torch.cuda.memory_allocated(prior.device)
    batch = BATCH.get(prior.device.type, BATCH["cpu"])
    while batch > 1 and prior.drawing_bytes(config, batch, precision) > SPARE * free:
        batch //= 2
    return batch


def _out_of_memory(error: Exception) -> bool:
    messages = ("not enough memory", "can't allocate memory")  # of the CPU's allocator
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in messages)
