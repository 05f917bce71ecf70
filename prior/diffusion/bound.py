"""The variational bound on −log p(x0) of diffusion, in nats, in the limit of ever finer steps between its levels.

    −log p(x0) ≤ KL(q(x_1000 | x0) || N(0, I))                  prior
               + ½ ∫ E‖x0 − x̂0(x)‖² dSNR                       diffusion, from level 1000 to level a
               + E −log N(x0; x̂0(x_a), 1 / SNR(a))              reconstruction

with SNR = α² / σ² and a the lowest level that is well trained (Kingma et al. 2021,
https://arxiv.org/abs/2107.00630, eq. 11 to 18). It holds for every target and schedule: nothing but α, σ and the guess
of x0 is in it. Between whole levels the network is asked as well: with steps of one level the bound is looser, by 0.4
nats (linear, cosine) to 1.4 (flow) for each standard normal number.

The integral is estimated at some levels, drawn with a density and divided by it. The density follows log(1 + SNR): for
a standard normal number all levels then have the same mean.

Shapes: x0 and x (B, T); levels (B,); shares of the bound (B, T).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from smalti.prior.diffusion.draws import Draws
from smalti.prior.diffusion.noise import LEVELS, Noise, Rates

TERMS = 16  # levels at which the integral is estimated for each sample; each takes the network once
Denoise = Callable[[Tensor, Tensor, Rates], Tensor]  # (x, level, rates) -> x̂0


def bound_each(x0: Tensor, denoise: Denoise, noise: Noise, draws: Draws, terms: int = TERMS) -> Tensor:
    """Return each number's share of an estimate of the bound, (B, T)."""
    share = prior_nats(x0, noise) + reconstruction_nats(x0, denoise, noise, draws)
    least, most = (math.log1p(noise.level(number).snr) for number in (LEVELS, noise.lowest))
    start = draws.uniform().double().cpu()
    for term in range(terms):  # a stratum each, at the same place of all strata
        snr = torch.expm1(least + (most - least) * (start + term) / terms)
        error = denoising_error(x0, *noise.at(snr, x0), denoise, draws)
        share = share + (0.5 * (most - least) / terms * (1 + snr)).to(x0)[:, None] * error
    return share


def prior_nats(x0: Tensor, noise: Noise) -> Tensor:
    """Return KL(q(x_1000 | x0) || N(0, I)) of each number."""
    last = noise.level(LEVELS)
    return 0.5 * ((last.alpha * x0) ** 2 + last.sigma**2 - 1) - math.log(last.sigma)


def reconstruction_nats(x0: Tensor, denoise: Denoise, noise: Noise, draws: Draws) -> Tensor:
    """Return −log N(x0; x̂0(x_a), 1 / SNR(a)) of each number, at one draw of x_a."""
    level, snr = x0.new_full((len(x0),), noise.lowest), noise.level(noise.lowest).snr
    error = denoising_error(x0, level, noise.rates(level), denoise, draws)
    return 0.5 * (snr * error + math.log(2 * math.pi) - math.log(snr))


def denoising_error(x0: Tensor, level: Tensor, rates: Rates, denoise: Denoise, draws: Draws) -> Tensor:
    """Return the squared error of the guess of each number from a draw of x at levels (B,)."""
    return (x0 - denoise(rates.noisy(x0, draws.normal()), level, rates)).square()
