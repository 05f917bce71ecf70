"""Solvers: one step from a level of noise to one with less, by what the network says of x.

Shapes: x, x0 and noise (B, T).

x_s is x at the present level s, and x_t is wanted at the next, t < s. All are exact where the guess of x0 does not
change on the way; they differ in what they do where it does.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from smalti.prior.diffusion.noise import Guess, Level


class Earlier(NamedTuple):
    """The guess one step before."""

    level: Level
    x0: Tensor


class Solver(Protocol):
    """A way to take a step."""

    def __call__(
        self, x: Tensor, guess: Guess, now: Level, then: Level, earlier: Earlier | None, noise: Callable[[], Tensor]
    ) -> Tensor:
        """Return x at the level `then`, of x at the level `now`; `noise` draws standard normal numbers (B, T)."""


def ddpm(
    x: Tensor, guess: Guess, now: Level, then: Level, earlier: Earlier | None, noise: Callable[[], Tensor]
) -> Tensor:
    """Draw from q(x_t | x_s, x0) (Ho et al. 2020, eq. 6 and 7; of any α and σ: Kingma et al. 2021, app. A).

    Its variance is the small one, σ_t² σ_{s|t}² / σ_s².
    """
    shared = now.kept_from(then) * then.sigma / now.sigma  # correlation of the noise in x_s and x_t
    mean = then.alpha * guess.x0 + then.sigma * shared * guess.noise
    return mean if then.sigma == 0 else mean + then.sigma * math.sqrt(max(0.0, 1 - shared**2)) * noise()


def ddim(
    x: Tensor, guess: Guess, now: Level, then: Level, earlier: Earlier | None, noise: Callable[[], Tensor]
) -> Tensor:
    """Return α_t x0 + σ_t ε (Song et al. 2020, eq. 12 without noise).

    Of flow it is Euler's step x + (t − s)(ε − x0).
    """
    return then.alpha * guess.x0 + then.sigma * guess.noise


def dpm(
    x: Tensor, guess: Guess, now: Level, then: Level, earlier: Earlier | None, noise: Callable[[], Tensor]
) -> Tensor:
    """Take a step of DPM-Solver++ 2M (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2).

    x_t = σ_t / σ_s x_s + α_t (1 − e^{−h}) D with h = λ_t − λ_s, where D is x0, led on from the guess before. The first
    step has none, and the last one, where h is infinite, takes x0 itself: they are DDIM's.
    """
    h, x0 = then.half_log_snr - now.half_log_snr, guess.x0
    if earlier is not None and math.isfinite(h):
        lead = h / (2 * (now.half_log_snr - earlier.level.half_log_snr))  # 0 after a level without latents
        x0 = (1 + lead) * x0 - lead * earlier.x0
    return then.sigma / now.sigma * x + then.alpha * -math.expm1(-h) * x0


SOLVERS: dict[str, Solver] = {"ddpm": ddpm, "ddim": ddim, "euler": ddim, "dpm": dpm}
