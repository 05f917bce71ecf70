"""The masked Transformer as a prior: what it is trained on, the bound on its likelihood, how it draws and walks.

Its samples are drawn in an order that they decide themselves, or at random. Drawn at random one code a pass, they have
the likelihood p(x) = E_σ Π_t p(x_σt | x_σ1, ..., x_σ(t−1)) over all orders σ, of which the mean over orders is a bound:

    −log p(x) ≤ E_σ Σ_t −log p(x_σt | x_σ<t) = E_n [T / n · Σ over the hidden −log p(x_t | those that are not)],

n of the T codes hidden at random, n uniform from 1 to T (Uria et al. 2014, https://arxiv.org/abs/1310.1757; Hoogeboom
et al. 2021, https://arxiv.org/abs/2110.02037, eq. 3). Training with schedule `uniform` makes it small; `cosine` shows
the numbers n as often as the passes of drawing meet them (Chang et al. 2022, eq. 1), but counts each hidden code alike,
and so says most of states in which nearly all are hidden, of which drawing keeps one or two codes.

Shapes: condition (B, ...), codes (B, T) int64 in [0, K), hidden (B, T) bool, known (B, P) bool over the places.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.mixed_radix import to_digits, to_index
from smalti.common.seeds import generator, uniforms
from smalti.prior.base import Choose, Unfolding
from smalti.prior.code_head import nll_each
from smalti.prior.config import PriorConfig
from smalti.prior.draw import DIVERGED, draw_categorical, guidance_scales
from smalti.prior.masked.choice import first_ranked, halton_ranks, still_hidden
from smalti.prior.masked.config import MaskedConfig
from smalti.prior.masked.network import MaskedTransformer
from smalti.prior.sample import Batch, PassSampler
from smalti.prior.sampling_config import CODE_SETTINGS, Precision, SamplingConfig

PASSES = 12  # by default
CODED_PASSES = 64  # of the coder: one code a pass where there are no more codes
MASKS, FEW_MASKS = 8, 2  # of a sample: in its bound, and in an evaluation while training


@MaskedConfig.register
class MaskedPrior(MaskedTransformer):
    """A distribution over the hidden codes of a sample given the class and the others."""

    takes: ClassVar[frozenset[str]] = CODE_SETTINGS | {"precision", "steps", "order", "choice_temperature"}
    heeds_all: ClassVar[bool] = True
    usual: ClassVar[Mapping[str, Any]] = {"steps": PASSES}
    exact = False
    halton: Tensor  # (T,)

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        self.register_buffer("halton", halton_ranks(config.layout), persistent=False)

    # ------------------------------------------------------------------------------------------------------ in training

    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        B, T = latents.shape
        share, place = torch.rand(B, device=latents.device), torch.rand(B, T, device=latents.device)
        if self.architecture.schedule == "cosine":
            number = (T * (math.pi / 2 * share).cos()).ceil().clamp_min(1)
            weight = torch.full_like(number, T / mean_of_cosine(T))  # each hidden code counts alike
        else:
            number = 1 + (T * share).floor()
            weight = T / number
        hidden = first_ranked(place, torch.ones_like(latents, dtype=torch.bool), number)
        return nll_each(forward(condition, latents, hidden), latents, self.vocabularies) * hidden * weight[:, None]

    @torch.no_grad()
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the share of each code in the bound, (B, T), by a few masks that belong to the row."""
        return self.bound(latents, condition, torch.ones_like(latents, dtype=torch.bool), rows, FEW_MASKS)

    # --------------------------------------------------------------------------------------------------------- scoring

    @torch.no_grad()
    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return self.bound(latents, condition, torch.ones_like(latents, dtype=torch.bool), seeds_of(latents), MASKS)

    @torch.no_grad()
    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the bound on log p(codes | condition), or on that of the unknown codes given the known ones, (B,).

        It is estimated with `MASKS` masks of each sample, which are a function of its codes.
        """
        self.check(codes, condition, known)
        wanted = torch.ones_like(codes, dtype=torch.bool)
        if known is not None:
            wanted = ~known.repeat_interleave(self.config.layout.depth, 1)
        return -self.bound(codes, condition, wanted, seeds_of(codes), MASKS).sum(1)

    def bound(self, codes: Tensor, condition: Tensor, wanted: Tensor, seeds: Sequence[int], masks: int) -> Tensor:
        """Return the share of each code in the bound on −log p of the codes `wanted` (B, T) bool given the others, in
        nats (B, T).

        Its mean over seeds is the bound: the number of hidden codes is uniform, in as many strata as there are masks.
        """
        T, number = codes.shape[1], wanted.sum(1)
        drawn = torch.stack([uniforms(seed, masks, 1 + T) for seed in seeds]).to(codes.device)
        total = torch.zeros(codes.shape, device=codes.device)
        for k in range(masks):
            share = (k + drawn[:, k, 0].double()) / masks
            few = 1 + torch.minimum((number * share).floor(), number - 1).clamp_min(0)
            hidden = first_ranked(drawn[:, k, 1:], wanted, few)
            nll = nll_each(self(condition, codes, hidden), codes, self.vocabularies)
            total += nll * hidden * (number / few)[:, None]
        return total / masks

    # --------------------------------------------------------------------------------------------------------- drawing

    def not_taken(self, sampling: SamplingConfig) -> list[str]:
        noise = sampling.choice_temperature != SamplingConfig().choice_temperature and sampling.order != "confidence"
        return [*super().not_taken(sampling), *(["choice_temperature"] if noise else [])]

    def check_sampling(self, sampling: SamplingConfig) -> None:
        if "choice_temperature" in self.not_taken(sampling):
            raise ValueError(
                f"choice_temperature {sampling.choice_temperature:g} is noise in the order confidence; order "
                f"{sampling.order} has none: leave it out"
            )
        super().check_sampling(sampling)

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> PassSampler:
        self.check_sampling(config)
        return PassSampler(self, config, batch_size)

    def heeds(self, known: Tensor) -> bool:
        return True

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        a, T = self.architecture, self.config.layout.length
        rows = batch_size * (1 + (config.guidance != 1))
        return rows * (T * (60 * a.dim + 16 * max(self.vocabularies)) + 8 * a.heads * T * min(T, 256))

    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the codes after each pass: those it keeps, and its draws of the others."""
        layout, codes = self.config.layout, batch.latents
        hidden = ~batch.known.repeat_interleave(layout.depth, 1)
        noise = [generator(seed) for seed in batch.seeds]
        ranks = self.halton.expand_as(codes)
        if config.order == "random":
            ranks = _uniform(noise, layout.length).to(codes.device)
        first = hidden.sum(1)
        passes = first.clamp(1, config.steps or PASSES)  # a code each at least: of few, schedules end with the last one
        scales = {n: guidance_scales(config, n) for n in set(passes.tolist())}
        for i in range(int(passes.max())):
            scale = torch.stack([scales[n][min(i, n - 1)] for n in passes.tolist()]).to(codes.device)[:, None]
            u = _uniform(noise, layout.length, 1 + len(self.vocabularies)).to(codes.device)
            drawn, log_p = self._drawn(batch.condition, codes, hidden, u[..., 1:], config, scale, precision)
            if config.order == "confidence":
                gumbel = -(-u[..., 0].log()).clamp_min(1e-30).log()
                left = (1 - (i + 1) / passes.double()).clamp_min(0)[:, None].float()
                ranks = log_p + config.choice_temperature * left * gumbel
            kept = first_ranked(ranks, hidden, hidden.sum(1) - still_hidden(first, i + 1, passes))
            guess = torch.where(hidden, drawn, codes)
            codes, hidden = torch.where(kept, drawn, codes), hidden & ~kept
            yield Unfolding(guess, ~hidden.view(len(hidden), layout.places, layout.depth).any(2))
            if not hidden.any():
                return

    def _drawn(
        self,
        condition: Tensor,
        codes: Tensor,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        scale: Tensor,
        precision: Precision,
    ) -> tuple[Tensor, Tensor]:
        """Return a draw of each hidden code given those that are not, (B, T), and its log-probability, (B, T).

        Args:
            uniform: (B, T, G) in (0, 1].
            scale: (B, 1), of the guidance.
        """
        guided = config.guidance != 1
        if guided:
            condition = torch.cat([condition, self.config.condition.none(len(condition), condition.device)])
        double = (lambda x: torch.cat([x, x])) if guided else (lambda x: x)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            x = self.features(condition, double(to_digits(codes, self.vocabularies)), double(hidden)).float()
        digits = torch.zeros(*codes.shape, len(self.vocabularies), dtype=torch.int64, device=codes.device)
        log_p = torch.zeros(codes.shape, device=codes.device)
        for g, size in enumerate(self.vocabularies):
            logits = self.head.part(x, [double(part) for part in digits[..., :g].unbind(-1)])
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, scale[..., None])
            wanted = logits[hidden]
            part = draw_categorical(wanted, uniform[..., g][hidden], config)
            if (part >= size).any():  # only NaN gives a code beyond the last
                raise UserError(DIVERGED)
            wanted = wanted / config.temperature
            log_p[hidden] += wanted.gather(1, part[:, None])[:, 0] - wanted.logsumexp(1)
            digits[..., g][hidden] = part
        return to_index(digits, self.vocabularies), log_p

    # --------------------------------------------------------------------------------------------------------- walking

    @torch.inference_mode()
    def walk(self, condition: Tensor, choose: Choose) -> Tensor:
        """Return codes (B, T), as `prior.base.Walks` says: in Halton's order, at most `CODED_PASSES` passes.

        The codes of a pass are independent given those before, and cost what that costs.
        """
        B, T, codebooks = len(condition), self.config.layout.length, self.codebooks.tolist()
        codes, hidden = condition.new_zeros(B, T), torch.ones(B, T, dtype=torch.bool, device=condition.device)
        first, matrices = hidden.sum(1), self.head.matrices()
        passes = first.clamp_max(CODED_PASSES)
        for i in range(min(T, CODED_PASSES)):
            x = self.features(condition, to_digits(codes, self.vocabularies), hidden)
            number = hidden.sum(1) - still_hidden(first, i + 1, passes)
            kept = first_ranked(self.halton.expand(B, T), hidden, number)
            for t in kept[0].nonzero()[:, 0].tolist():
                digits: list[Tensor] = []
                for g in range(len(self.vocabularies)):
                    logits = F.linear(self.head.after(x[:, t], digits), matrices[g][codebooks[t]])
                    digits.append(choose(logits, t, g))
                codes[:, t] = to_index(torch.stack(digits, dim=-1), self.vocabularies)
            hidden = hidden & ~kept
        return codes


def seeds_of(codes: Tensor) -> list[int]:
    """Return a seed for each sample (B, T) that is a function of its codes."""
    return [zlib.crc32(row.numpy().tobytes()) for row in codes.long().cpu()]


def mean_of_cosine(codes: int) -> float:
    """Return the mean of ⌈T cos(π u / 2)⌉ over u uniform in [0, 1): the codes that the cosine schedule hides."""
    return sum(2 / math.pi * math.acos(n / codes) for n in range(codes))


def _uniform(noise: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Return the next numbers of each sample's generator, (B, *shape) in (0, 1]."""
    return torch.stack([1 - torch.rand(shape, generator=each) for each in noise])
