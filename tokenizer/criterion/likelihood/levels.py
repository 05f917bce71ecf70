"""The 256 levels of an 8-bit pixel, and the mass that a density has on each.

Shapes: pixels x in [-1, 1], levels int64 in [0, 255]; location and log_scale broadcast to x.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.tokenizer.criterion.likelihood.config import LEVELS

HALF = 1 / 255  # of a level's width: levels are 2 / 255 apart
LOG_WIDTH = math.log(2 * HALF)
OPEN = 50.0  # scales that the outermost levels go on: e^-50 lies beyond, and an infinite end has a gradient of NaN


def levels_of(images: Tensor) -> Tensor:
    """Return the level of each pixel in [-1, 1], int64 in [0, 255]."""
    return ((images.double() + 1) * 127.5).round().clamp(0, LEVELS - 1).long()


def pixels_of(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the pixels in [-1, 1] of levels."""
    return levels.to(dtype) / 127.5 - 1


def all_levels(like: Tensor) -> Tensor:
    """Return the pixel of each level, (256,) in [-1, 1]."""
    return pixels_of(torch.arange(LEVELS, device=like.device), like.dtype)


def edges(x: Tensor, location: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the levels of pixels x begin and end, in scales from the location."""
    inverse = torch.exp(-log_scale)
    low, high = (x - HALF - location) * inverse, (x + HALF - location) * inverse
    first, last = high.clamp_max(0) - OPEN, low.clamp_min(0) + OPEN
    return torch.where(x < -1 + HALF, first, low), torch.where(x > 1 - HALF, last, high)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 − e^x), x < 0."""
    return torch.log(-torch.expm1(x).clamp_max(-torch.finfo(x.dtype).tiny))


def log_normal_mass(a: Tensor, b: Tensor) -> Tensor:
    """Return log(Φ(b) − Φ(a)), a < b, accurate also far from the middle: computed on the side where Φ is small."""
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    log_b = torch.special.log_ndtr(b)
    return log_b + log1mexp(torch.special.log_ndtr(a) - log_b)


def log_laplace_mass(a: Tensor, b: Tensor) -> Tensor:
    """Return log(F(b) − F(a)), a < b, of the distribution function F of the standard Laplace distribution."""
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    below = b.clamp_max(0)
    outside = below - math.log(2) + log1mexp(a - below)
    around = torch.log1p(-(torch.exp(-b.clamp_min(0)) + torch.exp(a)) / 2)
    return torch.where(b <= 0, outside, around)


def log_logistic_mass(a: Tensor, b: Tensor) -> Tensor:
    """Return log(S(b) − S(a)) of the logistic function S; the difference is S(b) S(−a) (1 − e^(a − b))."""
    return F.logsigmoid(b) + F.logsigmoid(-a) + log1mexp(a - b)


def above_its_bound(density: float | None, bound: float | None) -> str | None:
    """Return what to say where −log p(x) of a density is larger than a bound on −log p(x) of levels; None elsewhere."""
    if density is None or bound is None or density <= bound:
        return None
    return (
        f"nll_of_density, {density:.1f} nats, lies above the bound, {bound:.1f}: the first is of the density, the "
        "second of 8-bit levels, and the level of a pure black or white pixel has all that lies beyond it. They "
        "compare on images without such pixels"
    )
