"""The variational bound on −log p(x0) of diffusion over 1000 levels, in nats.

    −log p(x0) ≤ KL(q(x_1000 | x0) || N(0, I))                                    prior
               + Σ_{t=2..1000} ½ (SNR(t−1) − SNR(t)) E‖x0 − x̂0(x_t)‖²              diffusion
               + E −log N(x0; x̂0(x_1), 1 / SNR(1))                                reconstruction

with SNR = α² / σ² (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, eq. 11 to 14). Of epsilon and v it is the
bound of Ho et al. (2020) with the small variance, and it holds for flow as well: nothing but α, σ and the guess of x0
is in it. The sum is estimated at some levels, drawn with a density and divided by it, so that its mean is the bound.

Shapes: x0 and x (B, T); levels (B,); shares of the bound (B, T).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from smalti.prior.diffusion.draws import Draws
from smalti.prior.diffusion.noise import LEVELS, Noise

TERMS = 16  # levels of the sum that a sample is asked at; each takes the network once
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, level) -> x̂0


def bound_each(x0: Tensor, denoise: Denoise, noise: Noise, draws: Draws, terms: int = TERMS) -> Tensor:
    """Return each number's share of an estimate of the bound, (B, T)."""
    share = prior_nats(x0, noise) + reconstruction_nats(x0, denoise, noise, draws)
    drops, density = chain(noise)
    start = draws.uniform()
    for term in range(terms):
        chosen = drawn(density, (start + term) / terms)  # a stratum each, at one place of all strata
        weight = 0.5 * drops[chosen] / (terms * density[chosen])
        error = denoising_error(x0, torch.from_numpy(chosen + 2).to(x0), denoise, noise, draws)
        share = share + torch.from_numpy(weight).to(x0)[:, None] * error
    return share


def prior_nats(x0: Tensor, noise: Noise) -> Tensor:
    """Return KL(q(x_1000 | x0) || N(0, I)) of each number."""
    last = noise.level(LEVELS)
    return 0.5 * ((last.alpha * x0) ** 2 + last.sigma**2 - 1) - math.log(last.sigma)


def reconstruction_nats(x0: Tensor, denoise: Denoise, noise: Noise, draws: Draws) -> Tensor:
    """Return −log N(x0; x̂0(x_1), 1 / SNR(1)) of each number, at one draw of x_1."""
    first = noise.level(1)
    snr = (first.alpha / first.sigma) ** 2
    error = denoising_error(x0, x0.new_ones(len(x0)), denoise, noise, draws)
    return 0.5 * (snr * error + math.log(2 * math.pi) - math.log(snr))


def denoising_error(x0: Tensor, level: Tensor, denoise: Denoise, noise: Noise, draws: Draws) -> Tensor:
    """Return the squared error of the guess of each number from a draw of x at levels (B,)."""
    x = noise.rates(level).noisy(x0, draws.normal())
    return (x0 - denoise(x, level)).square()


def chain(noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """Return of levels 2 to 1000 by how much SNR falls there, and the density with which they are drawn, (999,) each.

    The density follows the drop of log(1 + SNR): so large is the term of a standard normal number.
    """
    each = [noise.level(number) for number in range(1, LEVELS + 1)]
    snr = np.array([(level.alpha / level.sigma) ** 2 for level in each])
    log = np.log1p(snr)
    return snr[:-1] - snr[1:], (log[:-1] - log[1:]) / (log[0] - log[-1])


def drawn(density: np.ndarray, share: Tensor) -> np.ndarray:
    """Return the places (B,) of a density (n,) at which its cumulative sum passes these shares (B,)."""
    found = np.searchsorted(density.cumsum(), share.double().cpu().numpy(), side="right")
    return np.minimum(found, len(density) - 1)
