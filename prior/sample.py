"""Draw code sequences from the prior, whole or around codes that are known.

B images of T codes from a codebook of K:  labels (B,), seeds (B,) -> codes (B, T), int64 in [0, K).

All the randomness of an image is T uniform numbers from its own seed (times the parts a code is drawn in), and a batch has a
fixed, padded size, so that an image is the same wherever in the batch it stands and whichever process draws it.
"""

import gc
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.common.errors import UserError
from smalti.prior.config import PriorConfig
from smalti.prior.decoder import CountedStep, Decoder, NumberedStep, Step
from smalti.prior.draw import SamplingConfig, draw, guidance_scales, image_uniforms
from smalti.prior.graph import Graphs
from smalti.prior.matrix import Precision, cache_type, resolve
from smalti.prior.model import Prior, own_rows
from smalti.prior.order import code_order, known_first, raster

BATCH = {"cpu": 64, "cuda": 256}  # images a batch where memory does not ask for fewer: more gain little
SPARE = 0.5  # of the free memory is left to others and to what is not counted


def check_sampling(prior: PriorConfig, sampling: SamplingConfig) -> None:
    """Raise `ValueError` for settings that a prior cannot draw with: top_k above K, guidance without classes or without a
    prediction that was learnt without them."""
    if sampling.top_k is not None and sampling.top_k > prior.codebook_size:
        raise ValueError(f"top_k {sampling.top_k} is more than the {prior.codebook_size} codes there are")
    if sampling.guidance != 1 and prior.num_classes == 0:
        raise ValueError("guidance needs a prior with classes; this one is unconditional, leave guidance at 1")
    if sampling.guidance != 1 and not prior.takes_guidance:
        raise ValueError(
            f"guidance {sampling.guidance:g} leans on a prediction without a class, which this prior never learnt: it was "
            "trained with label_dropout 0. Give guidance 1, or train one with --label_dropout 0.1 (--start_from takes these "
            "weights along)"
        )


class Sampler:
    """Draws from one prior with one setting, in batches of one size. The weights are taken as they are when it is made."""

    def __init__(self, prior: Prior, config: SamplingConfig, batch_size: int | None = None):
        """
        Args:
            batch_size: images a batch, of which the last is padded; as many as memory holds, up to `BATCH`, when not given.
        Raises:
            ValueError: what `check_sampling` refuses, int8 on another device than a CPU.
        """
        check_sampling(prior.config, config)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.prior, self.config, self.device = prior, config, prior.head.weight.device
        self.guided, self.precision = config.guidance != 1, resolve(config.precision, self.device)
        self.batch_size = batch_size or fitting_batch(prior.config, self.device, self.guided, self.precision)
        self._batch: _Batch | None = None

    def __call__(
        self, labels: Tensor, seeds: Sequence[int], codes: Tensor | None = None, known: Tensor | None = None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> Tensor:  # fmt: skip
        """One sequence an image; where codes are known, they are kept and the others drawn around them.

        Args:
            labels: (B,) in [0, num_classes]; num_classes stands for no class.
            seeds: B of them; the same weights, label, seed and known codes give the same codes.
            codes: (B, T), read at the known places.
            known: (B, P) bool, places whose codes are kept. A prior trained in every order draws the others given all known
                ones, one trained in raster order given those that stand before them.
            progress: called with the number of images of each batch that is done.
        Returns:
            (B, T) int64.
        Raises:
            ValueError: not one seed a label, labels the prior has no class for, codes or a mask of another shape.
        """
        if len(seeds) != len(labels):
            raise ValueError(f"one seed an image: got {len(labels)} labels and {len(seeds)} seeds")
        with torch.inference_mode(), torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return self._around(labels, seeds, codes, known, progress)

    def _around(
        self, labels: Tensor, seeds: Sequence[int], codes: Tensor | None, known: Tensor | None,
        progress: Callable[[int], object],
    ) -> Tensor:  # fmt: skip
        c = self.prior.config
        if (codes is None) != (known is None):
            raise ValueError("codes and known are given together or not at all")
        if codes is None or known is None:
            codes = torch.zeros(len(labels), c.length, dtype=torch.int64)
            known = torch.zeros(len(labels), c.places, dtype=torch.bool)
        labels, codes, known = labels.to(self.device), codes.to(self.device), known.to(self.device)
        if known.shape == (len(codes), c.places) and codes.shape == (len(codes), c.length):
            codes = codes.masked_fill(~known.bool().repeat_interleave(c.code_depth, 1), 0)  # not read there
        self.prior.check(codes, labels, known)
        drawn = codes.clone()  # of images known whole, and else overwritten
        order = known_first(known) if c.any_order else raster(len(labels), c.places, self.device)
        given = known.gather(1, order)  # (B, P), in the order
        lead = given.long().cumprod(1).sum(1)  # known places that the order begins with
        for places in lead[lead < c.places].unique().tolist():
            for rows in (lead == places).nonzero()[:, 0].split(self.batch_size):
                some = [seeds[i] for i in rows.tolist()]
                drawn[rows] = self._draw(labels[rows], some, codes[rows], order[rows], given[rows], places)
                progress(len(rows))
        return drawn

    def _draw(self, labels: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int) -> Tensor:
        """One batch, or fewer images; in halves when memory does not hold it."""
        while True:
            try:
                self._batch = self._batch or _Batch(self.prior, self.config, self.batch_size, self.guided, self.precision)
                parts = [
                    self._batch.draw(labels[i], [seeds[j] for j in i.tolist()], codes[i], order[i], given[i], lead)
                    for i in torch.arange(len(labels), device=self.device).split(self.batch_size)
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


def sample(
    prior: Prior, labels: Tensor, seeds: Sequence[int], config: SamplingConfig, *, batch_size: int | None = None
) -> Tensor:  # fmt: skip
    """labels (B,), seeds -> codes (B, T): `Sampler` for a single call."""
    return Sampler(prior, config, batch_size)(labels, seeds)


def fitting_batch(config: PriorConfig, device: torch.device, guided: bool, precision: Precision) -> int:
    """Images a batch: `BATCH` of the device, halved until cache and logits fit into half of the memory that is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    a = config.architecture
    batch = BATCH.get(device.type, BATCH["cpu"])
    cache = (
        2 * a.depth * a.key_heads * a.head_dim * config.length * cache_type(precision, batch * (1 + guided), device).itemsize
    )
    image = (1 + guided) * (cache + 32 * a.dim) + 40 * max(config.vocabularies) + 64 * config.length
    while batch > 1 and batch * image > SPARE * free:
        batch //= 2
    return batch


def _out_of_memory(error: Exception) -> bool:
    told = ("not enough memory", "can't allocate memory")  # by the CPU's allocator
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)


class _Batch:
    """The state of one batch on the device, at fixed addresses; of all steps' tables, row n belongs to step n.

    R = B rows, or 2 B under guidance: with the class above, without it below.
    """

    def __init__(self, prior: Prior, config: SamplingConfig, batch_size: int, guided: bool, precision: Precision):
        c, device = prior.config, prior.head.weight.device
        self.prior, self.config, self.size, self.guided, self.device = prior, config, batch_size, guided, device
        self.T, self.Q, rows = c.length, c.code_depth, batch_size * (1 + guided)
        self.decoder = Decoder(prior, rows, precision)
        self.scales = guidance_scales(config, self.T).to(device)
        self.sizes = torch.tensor(prior.vocabularies, device=device)  # of the G parts of a code
        self.worth = self.sizes.flip(0).cumprod(0).flip(0) // self.sizes
        self.x = torch.zeros(rows, c.architecture.dim, device=device)  # the embedding of the code before
        self.order = torch.zeros(self.T, rows, dtype=torch.int64, device=device)  # the place each step predicts
        self.own = torch.zeros_like(self.order)  # and where the code before stands, as a row of the table of angles
        self.uniforms = torch.zeros(self.T, len(self.sizes), batch_size, device=device)
        self.given = torch.zeros(self.T, batch_size, dtype=torch.bool, device=device)
        self.codes = torch.zeros(self.T, batch_size, dtype=torch.int64, device=device)  # in the order; given, then drawn
        self.highest = torch.zeros(len(self.sizes), batch_size, dtype=torch.int64, device=device)  # drawn of each part
        self.graphs = Graphs(self._advance_counted, self.decoder.slots, self.Q, device) if device.type == "cuda" else None

    def draw(self, labels: Tensor, seeds: list[int], codes: Tensor, order: Tensor, given: Tensor, lead: int) -> Tensor:
        """Up to B images whose order begins with `lead` known places: codes (b, T), order and given (b, P) -> codes (b, T)."""
        b, start = len(labels), lead * self.Q
        pad = torch.arange(self.size, device=self.device).clamp_max(b - 1)  # the last image again
        steps = code_order(order[pad], self.Q)
        forced = bool(given[:, lead:].any())  # a code known further on, in raster order
        if self.graphs is not None:
            self.graphs.capture(forced)
        self.uniforms.copy_(image_uniforms(seeds, self.T, len(self.sizes))[pad.cpu()].permute(1, 2, 0))
        self.order.copy_(self._doubled(steps).T)
        self.own.copy_(own_rows(self.order.T).T)
        self.codes.copy_(codes[pad].gather(1, steps).T)
        self.highest.zero_()
        self.given.copy_(given[pad].repeat_interleave(self.Q, 1).T)
        classes = self._doubled(labels[pad])
        if self.guided:
            classes[self.size :] = self.prior.config.num_classes
        self._begin(classes, self._doubled(steps), start)
        if self.graphs is not None:
            self.graphs.run(start, self.T, forced)
        else:
            for n in range(start, self.T):
                self._advance(NumberedStep(n), n % self.Q, forced)
        if (self.highest >= self.sizes[:, None]).any():  # beyond the last code, which no probability is
            raise UserError("the prior's logits became NaN or Inf: its weights have diverged, or the file is damaged")
        return torch.empty_like(steps).scatter_(1, steps, self.codes.T)[:b]

    def _begin(self, classes: Tensor, steps: Tensor, start: int) -> None:
        """Read the class and the codes that the order begins with, but for the last of them, which the next step reads."""
        if start == 0:
            self.x.copy_(self.prior.class_embedding(classes))
            return
        known = self._doubled(self.codes[: start - 1].T)
        self.decoder.prefill(self.prior.inputs(classes, known, steps), 1 + self.order[:start].T, self.own[:start].T)
        self._read_back(self.codes[start - 1], (start - 1) % self.Q)

    def _advance_counted(self, n: Tensor, length: int, depth: int, forced: bool) -> None:
        self._advance(CountedStep(n, length), depth, forced)

    def _advance(self, step: Step, depth: int, forced: bool) -> None:
        """One step: from the embedding of the code before to the next code and its embedding."""
        order = step.read(self.order)
        x = self.x + F.embedding(order, self.prior.target_embedding)
        hidden = self.decoder.step(x, self.decoder.turns(1 + order, step.read(self.own)), step)
        parts: list[Tensor] = []
        for u in step.read(self.uniforms).unbind(0):
            logits = self.decoder.logits(hidden, depth, [self._doubled(part) for part in parts])
            if self.guided:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, step.read(self.scales))
            drawn, number = draw(logits, u, self.config), logits.shape[1]
            torch.maximum(self.highest[len(parts)], drawn, out=self.highest[len(parts)])
            parts.append(drawn.clamp_max(number - 1))
        code = parts[0] if len(parts) == 1 else torch.stack(parts, dim=-1).mul_(self.worth).sum(-1)
        if forced:
            code = torch.where(step.read(self.given), step.read(self.codes), code)
        step.write(self.codes, code)
        self._read_back(code, depth)

    def _read_back(self, code: Tensor, depth: int) -> None:
        """What the next step reads of a code (B,) at a depth of its place."""
        if len(self.sizes) == 1:
            embedded = F.embedding(code + depth * self.prior.vocabularies[0], self.prior.code_embedding.weight)
        else:
            rows = code[:, None] // self.worth % self.sizes + self.prior.first_rows[depth]  # (B, G)
            embedded = F.embedding(rows, self.prior.code_embedding.weight).sum(1)
        self.x.copy_(self._doubled(embedded))

    def _doubled(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (R, ...)."""
        return torch.cat([x, x]) if self.guided else x
