"""Priors that factorise log p(codes | class) into a distribution over each code given those before it.

Shapes: condition (B, ...) as `config.condition` has it; codes (B, T) int64 in [0, K), in raster order, the Q
codes of a place side by side; logits (B, T, V), where V is K, or the sum of the parts' sizes if a code is predicted in
parts; order (B, T), the place of the sequence that each step predicts; known (B, P) bool over the places.

Their log-probabilities are exact: the rate term of the lecture's ELBO.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.prior.base import Choose, Prior
from smalti.prior.code_head import nll_each
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.prediction_order import code_order, draw_order, known_first, raster, shuffled
from smalti.prior.sample import Drawing, HintedDrawing, StepSampler
from smalti.prior.sampling_config import CODE_SETTINGS, Precision, SamplingConfig

ANNEALED = (0.5, 0.75)  # raster order replaces random orders between these shares of the steps, as in RAR


class AutoregressivePrior(Prior):
    """A distribution over each code given the class and the codes before it in an order."""

    takes: ClassVar[frozenset[str]] = CODE_SETTINGS | {"precision"}
    unheeded: ClassVar[str] = (
        "was trained in raster order: what is kept below or right of what is drawn is not heeded in drawing it"
    )
    exact = True

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        self.vocabularies = config.vocabularies
        self.order = "raster"  # of the places in training: raster, any or annealed
        self.shuffled_share = 0.0  # share of the training rows in random order

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def forward(self, condition: Tensor, codes: Tensor, order: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V) fp32 of the codes in the order given, by default in raster order.

        logits[:, n] depends on the condition, the n codes before it, and the earlier parts of its own code.
        """

    @abstractmethod
    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> Drawing:
        """Return the state of a batch that is drawn with these settings at a resolved precision."""

    @abstractmethod
    def resolved(self, precision: Precision) -> Precision:
        """Return the precision to draw in. Raises ValueError if this prior has no such precision."""

    @abstractmethod
    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        """Return about how much memory a `drawing` of this size takes."""

    @abstractmethod
    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T), as `prior.base.Walks` says."""

    # ------------------------------------------------------------------------------------------------------ in training

    def prepare(self, c: TrainConfig) -> None:
        super().prepare(c)
        self.order = c.order

    def anneal(self, progress: float) -> None:
        self.shuffled_share = share_shuffled(self.order, progress)

    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        order = draw_order(len(condition), self.config.layout, self.shuffled_share, latents.device)
        ordered = latents if order is None else latents.gather(1, order)
        return nll_each(forward(condition, latents, order), ordered, self.vocabularies)

    @torch.no_grad()
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the NLL of each code, (B, T).

        A prior trained in every order is asked in a random order that belongs to the row, others in raster order.
        """
        if not self.config.any_order:
            return self.nll(latents, condition)
        places, seeded = self.config.layout.places, (torch.Generator().manual_seed(row) for row in rows)
        order = torch.cat([shuffled(1, places, generator) for generator in seeded]).to(latents.device)
        return self.nll(latents, condition, order=order)

    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return self.validation(latents, condition, rows)

    # ----------------------------------------------------------------------------------------------- what follows of it

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> StepSampler:
        self.check_sampling(config)
        return StepSampler(self, config, batch_size)

    def heeds(self, known: Tensor) -> bool:
        return self.config.any_order or not bool((known[:, 1:] & ~known[:, :-1]).any())

    @torch.no_grad()
    def log_prob(
        self, codes: Tensor, condition: Tensor, known: Tensor | None = None, *, order: Tensor | None = None
    ) -> Tensor:
        """Return log p(codes | condition) of each image, or of its unknown codes given the known ones, in nats.

        Args:
            codes: (B, T).
            condition: (B, ...), as `config.condition` has it.
            known: (B, P) bool, the places whose codes are given. A prior trained in every order reads the known codes
                first. One trained in raster order reads them where they stand, and predicts each code given all codes
                before it and none after it; this is the same if all known places come first.
            order: (B, P), a permutation of the places for each image, in which they are predicted.
        Returns:
            (B,).
        Raises:
            ValueError: codes or a condition that this prior was not trained for; an order for a prior of raster order;
                an order and known places at once.
        """
        self.check(codes, condition, known)
        B, P = len(codes), self.config.layout.places
        if order is not None and (known is not None or not self.config.any_order):
            raise ValueError(
                "an order is for a prior trained with order: any, and without known places, which give their own"
            )
        if order is not None and not torch.equal(order.sort(1).values, raster(B, P, order.device)):
            raise ValueError(f"an order must be ({B}, {P}), a permutation of each image's places")
        if known is not None and self.config.any_order:
            order = known_first(known)
        nll = self.nll(codes, condition, order=order)
        if known is not None:
            nll = nll.masked_fill(known.repeat_interleave(self.config.layout.depth, 1), 0)
        return -nll.sum(1)

    @torch.no_grad()
    def nll(self, codes: Tensor, condition: Tensor, *, order: Tensor | None = None) -> Tensor:
        """Return −log p of each code given those before it in the order, (B, T) in nats, each where its code stands.

        It takes what `log_prob` takes, and checks nothing.
        """
        if order is None:
            return nll_each(self(condition, codes), codes, self.vocabularies)
        steps = code_order(order, self.config.layout.depth)
        nll = nll_each(self(condition, codes, steps), codes.gather(1, steps), self.vocabularies)
        return torch.empty_like(nll).scatter_(1, steps, nll)


class HintedPrior(AutoregressivePrior):
    """A distribution over codes that can also be told something of each place, as prior/levels/ tells it of the grids
    above: a hint (B, P, C)."""

    @property
    @abstractmethod
    def hint_dim(self) -> int:
        """Return C, the channels of a hint."""

    @abstractmethod
    def forward(
        self, condition: Tensor, codes: Tensor, order: Tensor | None = None, hint: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, T, V) fp32; those of a code depend on the hint of its place too, whatever the order."""

    @abstractmethod
    def drawing(self, config: SamplingConfig, batch_size: int, precision: Precision) -> HintedDrawing:
        """Return the state of a batch that is drawn with these settings, always or never with a hint."""

    @abstractmethod
    def walk(self, condition: Tensor, choose: Choose, hint: Tensor | None = None) -> Tensor:
        """Return codes (B, T), as `prior.base.Walks` says."""


def share_shuffled(order: str, progress: float) -> float:
    """Return the share of rows in random order when the share `progress` of the steps is done."""
    if order != "annealed":
        return float(order == "any")
    begin, end = ANNEALED
    return min(1.0, max(0.0, (end - progress) / (end - begin)))
