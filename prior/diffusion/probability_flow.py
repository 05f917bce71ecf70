"""The likelihood of vectors along the probability flow, the equation whose path leads from latents to noise.

    dx/dτ = α'(τ) x̂0(x) + σ'(τ) ε̂(x)        log p(x_0) = log N(x_1; 0, I) + ∫ tr(∂(dx/dτ)/∂x) dτ

(Song et al. 2020, https://arxiv.org/abs/2011.13456, sec. 4.3; Chen et al. 2018). It is the exact density of the samples
that a solver without noise draws in ever smaller steps; of few steps or probes it is an estimate, and no bound. Of flow
τ is σ; of v and epsilon it is the angle whose sine is σ, and the path begins at level 1, the first of training.

Shapes: latents and x (B, T); condition (B, ...); log-densities (B,) float64.
"""

import math
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from smalti.prior.diffusion.draws import Draws, seed_of
from smalti.prior.diffusion.noise import LEVELS, Guess, Level, Noise
from smalti.prior.sampling_config import Precision

STEPS = 50
EXACT = 16  # numbers a sample at most whose trace is computed whole, by as many backward passes


class Diffuses(Protocol):
    """The methods of a diffusion prior that the flow calls; `prior/diffusion/model.py` documents them."""

    noise: Noise
    deviation: Tensor

    def check(self, latents: Tensor, condition: Tensor, known: Tensor | None = None) -> None: ...

    def standardized(self, latents: Tensor) -> Tensor: ...

    def guided(self, x: Tensor, level: float, condition: Tensor, scale: float, precision: Precision) -> Guess: ...


def probability_flow_log_prob(
    prior: Diffuses, latents: Tensor, condition: Tensor, steps: int = STEPS, probes: int = 1
) -> Tensor:
    """Return log p of each sample, (B,) float64, by Heun's method.

    Args:
        steps: each takes the network twice, and its derivative.
        probes: vectors of random signs a step, whose mean estimates the trace (Hutchinson 1990); samples of few numbers
            need none. They belong to the latents.
    """
    return -flow_nats_each(prior, latents, condition, steps, probes).sum(1)


def flow_nats_each(prior: Diffuses, latents: Tensor, condition: Tensor, steps: int, probes: int) -> Tensor:
    """Return each number's share of −log p, (B, T) float64; see `probability_flow_log_prob`."""
    prior.check(latents, condition)
    x = prior.standardized(latents)
    signs = Signs(x, probes)
    found = prior.deviation.double().log().expand(len(x), -1)
    for now, then in pairwise(path(prior.noise, steps)):
        step, vectors = time_of(then, prior.noise) - time_of(now, prior.noise), signs.draw()
        velocity, here = velocity_and_trace(prior, x, now, condition, vectors)
        there_velocity, there = velocity_and_trace(prior, x + step * velocity, then, condition, vectors)
        x = x + 0.5 * step * (velocity + there_velocity)
        found = found - 0.5 * step * (here + there).double()
    return found + 0.5 * (x.double().square() + math.log(2 * math.pi))


class Signs:
    """Vectors by which a trace is estimated: random signs, or where numbers are few each number's own direction."""

    def __init__(self, x: Tensor, probes: int):
        self.whole = x.shape[1] <= EXACT
        self.probes, self.like = probes, x
        self.draws = Draws([seed_of(each) for each in x], x.shape[1], x.device)

    def draw(self) -> Tensor:
        """Return vectors (n, B, T); the sum over n of v · J v is the trace of J, or has it as its mean."""
        if self.whole:
            return torch.eye(self.like.shape[1]).to(self.like)[:, None].expand(-1, len(self.like), -1)
        return torch.stack([self.draws.normal().sign() for _ in range(self.probes)]) / math.sqrt(self.probes)


def path(noise: Noise, steps: int) -> list[Level]:
    """Return the levels of the path, from the latents to noise."""
    if noise.continuous:
        return noise.grid(steps)[::-1]
    numbers = torch.linspace(1, LEVELS, steps + 1).round().unique()
    return [noise.level(number) for number in numbers.tolist()]


def time_of(level: Level, noise: Noise) -> float:
    """Return τ of a level."""
    return level.sigma if noise.continuous else math.atan2(level.sigma, level.alpha)


def velocity_and_trace(
    prior: Diffuses, x: Tensor, level: Level, condition: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return dx/dτ (B, T) at x, and by vectors (n, B, T) each number's share of the trace of its derivative, (B, T)."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        x0, noise = prior.guided(x, level.number, condition, 1.0, "fp32")
        rates = (-1.0, 1.0) if prior.noise.continuous else (-level.sigma, level.alpha)
        velocity = rates[0] * x0 + rates[1] * noise
        found = torch.zeros_like(x)
        for vector in vectors:
            (product,) = torch.autograd.grad(velocity, x, vector, retain_graph=True)
            found = found + (product * vector).detach()
    return velocity.detach(), found.detach()
