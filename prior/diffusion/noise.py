"""Noise of 1000 levels: how much of the latents and of noise is in each, and what a network predicts there.

    x = α x0 + σ ε        level 0 is the latents x0 alone, level 1000 is noise ε, or all but noise

flow: α = 1 − ℓ/1000, σ = ℓ/1000 at every real level ℓ, target ε − x0 (Lipman et al. 2022, Liu et al. 2022).
v, epsilon: α² + σ² = 1 at whole levels, targets α ε − σ x0 and ε (Salimans and Ho 2022; Ho et al. 2020).

Shapes: x, x0, ε and targets (B, T); levels (B,); α and σ of each sample (B, 1).
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from smalti.prior.diffusion.config import DiffusionConfig, Schedule

LEVELS = 1000
LOWEST_OF_FLOW = 10  # level where σ is 0.01, as at the first of the linear schedule: training seldom goes below
LARGEST_BETA = 0.999  # of the cosine schedule, whose last α would be 0


class Level(NamedTuple):
    """One level of noise."""

    number: float  # from 0 to 1000
    alpha: float
    sigma: float

    @property
    def snr(self) -> float:
        """Return the signal-to-noise ratio α² / σ²; level 0 has none."""
        return (self.alpha / self.sigma) ** 2

    @property
    def half_log_snr(self) -> float:
        """Return λ = ln(α / σ)."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    def kept_from(self, less: "Level") -> float:
        """Return by which factor x at a level of less noise is in x at this level."""
        return self.alpha / less.alpha

    def added_to(self, less: "Level") -> float:
        """Return the deviation of the noise that leads from a level of less noise to this one."""
        return math.sqrt(max(0.0, self.sigma**2 - (self.kept_from(less) * less.sigma) ** 2))


class Rates(NamedTuple):
    """α and σ of each sample, (B, 1)."""

    alpha: Tensor
    sigma: Tensor

    def noisy(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return x of latents x0 and noise, (B, T)."""
        return self.alpha * x0 + self.sigma * noise


class Guess(NamedTuple):
    """The latents and the noise, (B, T) each, that x is made of by a prediction."""

    x0: Tensor
    noise: Tensor


class Prediction(NamedTuple):
    """A target of the network, and the way back from its prediction to latents and noise."""

    target: Callable[[Tensor, Tensor, Rates], Tensor]  # (x0, noise, rates) -> what is predicted
    guess: Callable[[Tensor, Tensor, Rates], Guess]  # (x, predicted, rates) -> x0 and noise


PREDICTIONS = {
    "flow": Prediction(
        lambda x0, noise, r: noise - x0,
        lambda x, u, r: Guess(x - r.sigma * u, x + r.alpha * u),
    ),
    "v": Prediction(
        lambda x0, noise, r: r.alpha * noise - r.sigma * x0,
        lambda x, v, r: Guess(r.alpha * x - r.sigma * v, r.sigma * x + r.alpha * v),
    ),
    "epsilon": Prediction(
        lambda x0, noise, r: noise,
        lambda x, noise, r: Guess((x - r.sigma * noise) / r.alpha, noise),
    ),
}


@cache
def alphas_cumprod(schedule: Schedule) -> np.ndarray:
    """Return α² of levels 1 to 1000, (1000,) float64."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, LEVELS)
    else:
        at = np.cos((np.arange(LEVELS + 1) / LEVELS + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - at[1:] / at[:-1], LARGEST_BETA)
    return np.cumprod(1 - betas)


class Noise(nn.Module):
    """The levels of noise of one target and schedule."""

    alphas: Tensor  # (1001,)
    sigmas: Tensor

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.prediction = PREDICTIONS[config.target]
        self.continuous = config.noise_schedule is None  # every real level is one
        self.lowest = LOWEST_OF_FLOW if self.continuous else 1  # level that training knows well
        squares = np.concatenate([[1.0], alphas_cumprod(config.noise_schedule or "linear")])
        sigma = np.linspace(0, 1, LEVELS + 1)
        self.exact = (1 - sigma, sigma) if self.continuous else (np.sqrt(squares), np.sqrt(1 - squares))
        for name, values in zip(("alphas", "sigmas"), self.exact, strict=True):
            self.register_buffer(name, torch.tensor(values.tolist()), persistent=False)

    def rates(self, level: Tensor) -> Rates:
        """Return α and σ (B, 1) of levels (B,)."""
        if self.continuous:
            sigma = (level / LEVELS)[:, None]
            return Rates(1 - sigma, sigma)
        return Rates(self.alphas[level.long()][:, None], self.sigmas[level.long()][:, None])

    def at(self, snr: Tensor, like: Tensor) -> tuple[Tensor, Rates]:
        """Return levels (B,) and their rates by signal-to-noise ratios (B,) float64 on the CPU, in the type of `like`.

        Between two whole levels of v and epsilon log SNR is straight.
        """
        if self.continuous:
            sigma = 1 / (1 + snr.sqrt())
            return (LEVELS * sigma).to(like), Rates((1 - sigma).to(like)[:, None], sigma.to(like)[:, None])
        alphas, sigmas = (each[:0:-1] for each in self.exact)  # from level 1000 to 1, as SNR rises
        number = np.interp(snr.log().numpy(), 2 * np.log(alphas / sigmas), np.arange(LEVELS, 0, -1.0))
        squares = snr / (1 + snr), 1 / (1 + snr)
        return torch.from_numpy(number).to(like), Rates(*(each.sqrt().to(like)[:, None] for each in squares))

    def level(self, number: float) -> Level:
        """Return a level by its number, which is whole but of flow."""
        if self.continuous:
            return Level(number, 1 - number / LEVELS, number / LEVELS)
        alpha, sigma = (float(each[int(number)]) for each in self.exact)
        return Level(number, alpha, sigma)

    def grid(self, steps: int) -> list[Level]:
        """Return the steps + 1 levels that sampling visits, from 1000 to 0, evenly spaced.

        The first is the last of training (trailing: Lin et al. 2023, https://arxiv.org/abs/2305.08891).
        """
        numbers = np.arange(steps, -1, -1) * (LEVELS / steps)
        return [self.level(float(number)) for number in (numbers if self.continuous else numbers.round())]

    def quantile(self, share: Tensor) -> Tensor:
        """Return the levels (B,) below which these shares (B,) of the levels of training lie.

        flow trains most in the middle, by a logit-normal distribution (Esser et al. 2024), the others everywhere alike.
        """
        if self.continuous:
            return LEVELS * torch.special.ndtri(share).sigmoid()
        return 1 + (LEVELS * share).floor().clamp_max(LEVELS - 1)
