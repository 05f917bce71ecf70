"""Latent diffusion as a prior: its loss, how it draws, whole and around known places, and the bound on its likelihood.

Shapes: latents (B, T), the D numbers of a place side by side; x and x0 the same with mean 0 and deviation 1 in each
channel; level (B,); condition (B, ...); known (B, P) bool.

Diffusion: Ho et al. (2020). On latents of unit variance: Rombach et al. (2022). Completion: Lugmayr et al. (2022).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from smalti.common.errors import UserError
from smalti.common.latent_statistics import LatentStatistics
from smalti.common.launch import computes_bf16
from smalti.common.layout import Layout
from smalti.prior.base import Prior, Unfolding
from smalti.prior.config import PriorConfig, TrainConfig
from smalti.prior.diffusion.bound import bound_each
from smalti.prior.diffusion.config import DiffusionConfig
from smalti.prior.diffusion.draws import Draws, seed_of
from smalti.prior.diffusion.network import DiffusionTransformer
from smalti.prior.diffusion.noise import LEVELS, Guess, Noise, Rates
from smalti.prior.diffusion.probability_flow import STEPS as FLOW_STEPS
from smalti.prior.diffusion.probability_flow import flow_nats_each
from smalti.prior.diffusion.solver import SOLVERS, Earlier
from smalti.prior.draw import guidance_scales
from smalti.prior.sample import Batch, PassSampler
from smalti.prior.sampling_config import Precision, SamplingConfig

STEPS = 25  # of sampling
STRATA = 2  # levels at which a held-out row is asked for its loss


class DiffusionSampler(PassSampler):
    """A sampler whose smallest products have a row an image: those of the level and the condition."""

    @property
    def rows(self) -> int:
        c = self.config  # under a schedule the scale may be 1 at some steps, which ask once
        return 2 if c.guidance != 1 and c.guidance_schedule == "constant" else 1


@DiffusionConfig.register
class DiffusionPrior(Prior):
    """A diffusion Transformer over vectors."""

    takes: ClassVar[frozenset[str]] = frozenset(
        {"steps", "solver", "resampling", "guidance", "guidance_schedule", "guidance_power", "precision"}
    )
    heeds_all: ClassVar[bool] = True
    usual: ClassVar[Mapping[str, Any]] = {"steps": STEPS, "solver": "dpm"}
    measure: ClassVar[str] = "mse"
    exact = False
    mean: Tensor  # (T,) of each number of the latents
    deviation: Tensor

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        a, statistics = config.architecture, config.statistics
        assert isinstance(a, DiffusionConfig) and statistics is not None  # PriorConfig has asked
        if len({grid.depth for grid in config.layout.grids}) > 1:
            raise UserError(
                f"a diffusion prior needs vectors of one length, and these are {config.layout}: give the grids of the "
                "tokenizer as many channels"
            )
        self.architecture = a
        self.noise = Noise(a)
        self.network: nn.Module = DiffusionTransformer(config)
        for name, values in zip(("mean", "deviation"), numbers_of(statistics, config.layout), strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return what the network predicts of x (B, T), of the same shape."""
        places = x.view(len(x), self.config.layout.places, -1)
        return self.network(places, level, condition).flatten(1)

    # ------------------------------------------------------------------------------------------------------ in training

    def prepare(self, c: TrainConfig) -> None:
        super().prepare(c.model_copy(update={"recompute": False}))
        if c.order != "raster":
            raise UserError(f"order {c.order} is of priors that draw codes; diffusion draws all at once: leave it out")
        if isinstance(self.network, DiffusionTransformer):
            self.network.recompute = c.recompute

    def matrices(self) -> list[nn.Parameter]:
        return self.network.matrices() if isinstance(self.network, DiffusionTransformer) else []

    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        x0 = self.standardized(latents)
        level = self.noise.quantile(torch.rand(len(x0), device=x0.device))
        return self.errors(x0, level, torch.randn_like(x0), condition, forward)

    @torch.no_grad()
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the loss of each number at levels spread over all, (B, T); levels and noise belong to the row."""
        x0 = self.standardized(latents)
        draws = Draws(rows, x0.shape[1], x0.device)
        start = draws.uniform()
        shares = [(start + stratum) / STRATA for stratum in range(STRATA)]
        each = [self.errors(x0, self.noise.quantile(share), draws.normal(), condition, self) for share in shares]
        return torch.stack(each).mean(0)

    def errors(self, x0: Tensor, level: Tensor, noise: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        """Return the squared error of what is predicted at each number, (B, T)."""
        rates = self.noise.rates(level)
        predicted = forward(rates.noisy(x0, noise), level, condition)
        return (predicted - self.noise.prediction.target(x0, noise, rates)).square()

    def standardized(self, latents: Tensor) -> Tensor:
        return (latents - self.mean) / self.deviation

    def restored(self, x0: Tensor) -> Tensor:
        """Return latents of x0: the inverse of `standardized`."""
        return x0 * self.deviation + self.mean

    # ----------------------------------------------------------------------------------------------------- how it draws

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> DiffusionSampler:
        self.check_sampling(config)
        return DiffusionSampler(self, config, batch_size)

    def check_sampling(self, sampling: SamplingConfig) -> None:
        super().check_sampling(sampling)
        if sampling.solver == "euler" and not self.noise.continuous:
            raise ValueError(
                f"solver euler is of target flow, and this prior predicts {self.architecture.target}: take ddim, which "
                "is the same step on its levels"
            )
        if sampling.steps is not None and sampling.steps > LEVELS and not self.noise.continuous:
            raise ValueError(
                f"steps {sampling.steps} are more than the {LEVELS} levels of target {self.architecture.target}"
            )
        self.resolved(sampling.precision)

    def resolved(self, precision: Precision) -> Precision:
        if precision == "int8":
            raise ValueError("precision int8 is of priors that draw code after code; take fp32 or bf16 for diffusion")
        if precision == "auto":
            return "bf16" if computes_bf16(self.device.type) else "fp32"
        return precision

    def drawing_bytes(self, config: SamplingConfig, batch_size: int, precision: Precision) -> int:
        """Return about what one block keeps at once: 24 times the stream in fp32, for a sample and its guidance."""
        layout, guided = self.config.layout, config.guidance != 1
        return batch_size * ((1 + guided) * 24 * 4 * layout.places * self.architecture.dim + 40 * layout.length)

    def heeds(self, known: Tensor) -> bool:
        return True

    def unfold(self, config: SamplingConfig, condition: Tensor, seeds: Sequence[int]) -> Iterator[Unfolding]:
        self.check_sampling(config)
        layout, device = self.config.layout, self.device
        latents = torch.zeros(len(seeds), layout.length, device=device)
        known = torch.zeros(len(seeds), layout.places, dtype=torch.bool, device=device)
        batch = Batch(condition.to(device), list(seeds), latents, known)
        return self.passes(batch, config, self.resolved(config.precision))

    @torch.no_grad()
    def passes(self, batch: Batch, config: SamplingConfig, precision: Precision) -> Iterator[Unfolding]:
        """Yield the guess of all latents after each step, at last the sample.

        Known places are known latents with the noise of the level, and samples that have some take each step
        `resampling` times, with noise added again in between, so that the drawn part comes to agree with them.
        """
        solve, grid = SOLVERS[config.solver or "dpm"], self.noise.grid(config.steps or STEPS)
        scales = guidance_scales(config, len(grid) - 1).tolist()
        draws = Draws(batch.seeds, self.config.layout.length, batch.latents.device)
        kept, known = batch.known.repeat_interleave(self.config.layout.depth, 1), self.standardized(batch.latents)
        some = batch.known.any(1)  # samples around known places
        completing = bool(some.any())
        x = x0 = draws.normal()
        earlier = None
        for (now, then), scale in zip(pairwise(grid), scales, strict=True):
            start, asked = x, None
            for time in range(config.resampling if completing and then.sigma > 0 else 1):
                if time > 0:
                    start, asked = now.kept_from(then) * x + now.added_to(then) * draws.normal(some), some
                if completing:
                    start = torch.where(kept, now.alpha * known + now.sigma * draws.normal(some), start)
                guess = self.guided(start, now.number, batch.condition, scale, precision)
                there = solve(start, guess, now, then, None if time else earlier, partial(draws.normal, asked))
                x = there if asked is None else torch.where(some[:, None], there, x)  # the others have taken this step
                x0 = guess.x0 if asked is None else torch.where(some[:, None], guess.x0, x0)
            earlier = Earlier(now, x0)
            if then.sigma == 0 and not x.isfinite().all():
                raise UserError(
                    "the prior's vectors became NaN or Inf: its weights have diverged, or the file is damaged"
                )
            yield Unfolding(torch.where(kept, batch.latents, self.restored(x if then.sigma == 0 else x0)), None)

    def guided(self, x: Tensor, level: float, condition: Tensor, scale: float, precision: Precision) -> Guess:
        """Return what x (B, T) at one level is made of, where guidance leads away from the guess without a condition by
        the scale (Ho and Salimans 2022)."""
        levels = x.new_full((len(x),), level)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            if scale == 1:
                predicted = self(x, levels, condition)
            else:
                both = torch.cat([condition, self.config.condition.none(len(x), x.device)])
                told, plain = self(x.repeat(2, 1), levels.repeat(2), both).chunk(2)
                predicted = plain + scale * (told - plain)
        return self.noise.prediction.guess(x, predicted, self.noise.rates(levels))

    # ------------------------------------------------------------------------------------------------------ likelihood

    @torch.no_grad()
    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        """Return each number's share of the variational bound on −log p, (B, T); what it draws belongs to the row."""
        draws = Draws(rows, latents.shape[1], latents.device)
        x0 = self.standardized(latents)
        return bound_each(x0, partial(self.denoised, condition), self.noise, draws) + self.deviation.log()

    def denoised(self, condition: Tensor, x: Tensor, level: Tensor, rates: Rates) -> Tensor:
        """Return the guess of x0 of x (B, T) at levels (B,) with these rates."""
        return self.noise.prediction.guess(x, self(x, level, condition), rates).x0

    def flow_nats(self, latents: Tensor, condition: Tensor) -> Tensor:
        return flow_nats_each(self, latents, condition, FLOW_STEPS, probes=1).float()

    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return minus the variational bound on −log p(latents | condition), (B,); what it draws belongs to the
        latents."""
        self.check(codes, condition, known)
        if known is not None:
            raise ValueError(
                "the variational bound of a diffusion prior is of whole samples: it says nothing of places given "
                "others; leave known out"
            )
        return -self.nats(codes, condition, [seed_of(each) for each in codes]).double().sum(1)


def numbers_of(statistics: LatentStatistics, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each number of a sample, (T,) each; a deviation of 0 counts as 1."""
    ends = np.cumsum([grid.depth for grid in layout.grids])[:-1]
    parts = zip(np.split(statistics.mean, ends), np.split(statistics.deviation, ends), layout.grids, strict=True)
    each = [(np.tile(mean, grid.places), np.tile(deviation, grid.places)) for mean, deviation, grid in parts]
    mean, deviation = (torch.tensor(np.concatenate(side).tolist()) for side in zip(*each, strict=True))
    return mean, torch.where(deviation > 0, deviation, 1.0)
