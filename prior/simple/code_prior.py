"""The base of the priors that draw every code by itself: exact, and told of no other code of the sample.

Shapes: condition (B,), codes (B, T) int64 in [0, K), known (B, P) bool over the places; logits (B, V_g) of part g of a
code, whose parts `vocabularies` names.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.common.mixed_radix import to_index
from smalti.prior.base import Choose, Prior, Unfolding
from smalti.prior.config import PriorConfig
from smalti.prior.draw import draw_categorical, guidance_scales, image_uniforms
from smalti.prior.sample import Batch, PassSampler
from smalti.prior.sampling_config import CODE_SETTINGS, Precision, SamplingConfig

COPIES = 8  # of a code's probabilities in fp32 while it is drawn


class CodePrior(Prior):
    """A distribution over codes that are independent given the class."""

    takes: ClassVar[frozenset[str]] = CODE_SETTINGS
    heeds_all: ClassVar[bool] = True
    exact = True
    vocabularies: tuple[int, ...]

    def __init__(self, config: PriorConfig):
        super().__init__(config)

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def logits(self, condition: Tensor, t: int, g: int) -> Tensor:
        """Return log p of the values of part g of code t, up to a constant, (B, V_g) float32."""

    @abstractmethod
    def log_prob_each(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Return log p of each code, (B, T) float64."""

    # ----------------------------------------------------------------------------------------------- what follows of it

    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        return -self.log_prob_each(latents, condition).float()

    @torch.no_grad()
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return -self.log_prob_each(latents, condition).float()

    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return self.validation(latents, condition, rows)

    @torch.no_grad()
    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        self.check(codes, condition, known)
        each = self.log_prob_each(codes, condition)
        return each.sum(1) if known is None else each.masked_fill(self.known_codes(known), 0).sum(1)

    def heeds(self, known: Tensor) -> bool:
        return True  # given the class, the rest does not depend on them

    def known_codes(self, known: Tensor) -> Tensor:
        """Return which codes are known, (B, T) bool, of known places (B, P)."""
        grids = self.config.layout.grids
        depths = torch.cat([known.new_full((grid.places,), grid.depth, dtype=torch.int64) for grid in grids])
        return known.repeat_interleave(depths, 1)

    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        found = []
        for t in range(self.config.layout.length):
            digits = [choose(self.logits(condition, t, g), t, g) for g in range(len(self.vocabularies))]
            found.append(to_index(torch.stack(digits, -1), self.vocabularies))
        return torch.stack(found, 1)

    # ------------------------------------------------------------------------------------------------------- in drawing

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> PassSampler:
        self.check_sampling(config)
        return PassSampler(self, config, batch_size)

    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the samples, which take a single pass."""
        T, parts = self.config.layout.length, len(self.vocabularies)
        u = image_uniforms(batch.seeds, T, parts).to(self.device)
        scales, none = guidance_scales(config, T).tolist(), self.config.condition.none(len(u), self.device)

        def draw(logits: Tensor, t: int, g: int) -> Tensor:
            if config.guidance != 1:
                without = self.logits(none, t, g)
                logits = without + scales[t] * (logits - without)
            return draw_categorical(logits, u[:, t, g], config)

        drawn = self.walk(batch.condition, draw)
        known = torch.ones_like(batch.known)
        yield Unfolding(torch.where(self.known_codes(batch.known), batch.latents, drawn), known)

    def resolved(self, precision: Precision) -> Precision:
        return "fp32"

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        T = self.config.layout.length
        return 4 * batch_size * (COPIES * max(self.vocabularies) + 8 * T * len(self.vocabularies))
