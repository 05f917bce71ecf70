"""Normal distributions of D numbers, by mean and scale: their draws, densities and KL to N(0, I).

Shapes: mean (..., D), of each place; ε and z (S, ..., D); `scale` is a standard deviation, never a variance.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

WIDEST = 10.0  # |log σ|: σ lies between 4.5e-5 and 2.2e4, so that σ² and 1 / σ² are far from the ends of fp32
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def bounded(x: Tensor) -> Tensor:
    """Return x, softly bounded to (−10, 10): the identity near 0, and with a gradient everywhere, unlike a clamp."""
    return x / torch.hypot(torch.ones_like(x), x / WIDEST)


def standard_log_prob(noise: Tensor) -> Tensor:
    """Return log N(ε; 0, I) of ε (..., D): (...)."""
    return -(0.5 * noise.square() + HALF_LOG_TAU).sum(-1)


class DiagonalNormal(NamedTuple):
    """N(μ, diag(σ²)). Its KL is the sum over numbers of ½ (σ² − 1 + μ² − log σ²)."""

    mean: Tensor  # (..., D)
    log_scale: Tensor  # (..., D)

    def move(self, noise: Tensor) -> Tensor:
        """Return μ + σ ε."""
        return self.mean + self.log_scale.exp() * noise

    def noise_of(self, z: Tensor) -> Tensor:
        """Return ε, of which z is made."""
        return (z - self.mean) * (-self.log_scale).exp()

    def log_det(self) -> Tensor:
        """Return log |dz / dε|: (...)."""
        return self.log_scale.sum(-1)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) of each number: (..., D)."""
        # σ² − 1 − log σ² near σ = 1 is a difference of almost equal numbers without expm1
        return 0.5 * (torch.expm1(2 * self.log_scale) + self.mean.square()) - self.log_scale

    def deviation(self) -> Tensor:
        return self.log_scale.exp()


class FullNormal(NamedTuple):
    """N(μ, L Lᵀ). Its KL is ½ (|L|² + |μ|² − D) − Σ log L_dd: one number."""

    mean: Tensor  # (..., D)
    log_scale: Tensor  # (..., D) of the diagonal of L
    below: Tensor  # (..., D, D) L below its diagonal, and 0 elsewhere

    def lower(self) -> Tensor:
        """Return L (..., D, D)."""
        return self.below + torch.diag_embed(self.log_scale.exp())

    def move(self, noise: Tensor) -> Tensor:
        """Return μ + L ε."""
        return self.mean + (self.lower() @ noise[..., None])[..., 0]

    def noise_of(self, z: Tensor) -> Tensor:
        """Return ε, of which z is made."""
        away = (z - self.mean).movedim(0, -1)  # (..., D, S): each L is there once, whatever S
        return torch.linalg.solve_triangular(self.lower(), away, upper=False).movedim(-1, 0)

    def log_det(self) -> Tensor:
        """Return log |dz / dε|: (...)."""
        return self.log_scale.sum(-1)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)): (..., 1)."""
        diagonal = DiagonalNormal(self.mean, self.log_scale).kl()
        return (diagonal + 0.5 * self.below.square().sum(-1)).sum(-1, keepdim=True)

    def deviation(self) -> Tensor:
        return (torch.exp(2 * self.log_scale) + self.below.square().sum(-1)).sqrt()
