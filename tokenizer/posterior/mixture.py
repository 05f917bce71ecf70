"""`mixture`: Σ_k π_k(x) N(μ_k(x), diag(σ_k²(x))), which has several modes where one Gaussian has to choose.

A draw takes component k with probability π_k and z = μ_k + σ_k ε. Differentiating that expression would leave out that
π decides which k: its gradient is wrong for π, and zero. Draws therefore carry the implicit gradient of the whole
mixture. With the conditional distribution functions

    F_d(z) = Σ_k w_kd Φ((z_d − μ_kd) / σ_kd),    w_kd ∝ π_k Π_{j<d} N(z_j; μ_kj, σ_kj²),

u = F(z) is uniform and independent of the parameters φ, so dz/dφ = −(∂F/∂z)⁻¹ ∂F/∂φ with ∂F/∂z lower triangular: Graves
(2016), https://arxiv.org/abs/1607.05690; Figurnov et al. (2018), https://arxiv.org/abs/1805.08498, sec. 3 and 4. Which
gradient is exact: for f with a derivative, that of mean f(z) over draws is unbiased for d E_q[f] / dφ, for weights,
means and scales alike, log q(z | x) within f included. It is a first derivative: the second is wrong.

There is no KL in closed form. The encoder gives log π, which need not be normalised, μ, and log σ, softly bounded to
(−10, 10). At h = 0 all components are N(0, I); what tells them apart is the encoder's random start.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Generator, Tensor

from smalti.tokenizer.posterior.base import Draw, Posterior, in_fp32, noise_for
from smalti.tokenizer.posterior.config import MixtureConfig
from smalti.tokenizer.posterior.normal import HALF_LOG_TAU, DiagonalNormal, bounded


class Mixture(NamedTuple):
    """The distribution of each place, K components."""

    log_weight: Tensor  # (B, P, K), sums to one
    each: DiagonalNormal  # of mean and log_scale (B, P, K, D)

    def log_parts(self, z: Tensor) -> Tensor:
        """Return log N(z_d; μ_kd, σ_kd²) of z (S, B, P, D): (S, B, P, K, D)."""
        return -0.5 * self.each.noise_of(z[..., None, :]).square() - HALF_LOG_TAU - self.each.log_scale

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q of z (S, B, P, D): (S, B, P)."""
        return (self.log_weight + self.log_parts(z).sum(-1)).logsumexp(-1)

    def share(self, z: Tensor) -> Tensor:
        """Return w, how likely each component is given the numbers before: (S, B, P, K, D)."""
        parts = self.log_parts(z)
        before = parts.cumsum(-1) - parts
        return (self.log_weight[..., None] + before).softmax(-2)

    def uniforms(self, z: Tensor) -> Tensor:
        """Return u = F(z) of z (S, B, P, D), its shape kept."""
        return (self.share(z) * _phi(self.each.noise_of(z[..., None, :]))).sum(-2)

    def slopes(self, z: Tensor) -> Tensor:
        """Return ∂F/∂z, lower triangular: (S, B, P, D, D), row d and column j ≤ d."""
        w, noise = self.share(z), self.each.noise_of(z[..., None, :])
        above = _phi(noise) - (w * _phi(noise)).sum(-2, keepdim=True)
        score = -noise * (-self.each.log_scale).exp()
        before = torch.einsum("sbpkd,sbpkj->sbpdj", w * above, score).tril(-1)
        density = (w * self.log_parts(z).exp()).sum(-2)
        return before + torch.diag_embed(density.clamp_min(torch.finfo(z.dtype).tiny))

    def implicit(self, z: Tensor) -> Tensor:
        """Return z (S, B, P, D), which has no gradient, with the implicit one."""
        with torch.no_grad():
            slopes = self.slopes(z)
        u = self.uniforms(z)
        step = torch.linalg.solve_triangular(slopes, (u - u.detach())[..., None], upper=False)[..., 0]
        return z - step


@MixtureConfig.register
class MixturePosterior(Posterior):
    """The mixture posterior; h is log π, then μ and log σ of each component."""

    config: MixtureConfig

    def mixture(self, h: Tensor) -> Mixture:
        """Return the distribution that h (B, P, N), fp32, stands for."""
        K, D = self.config.components, self.dim
        log_weight, mean, log_scale = h.split([K, K * D, K * D], dim=-1)
        mean, log_scale = (rearrange(part, "b p (k d) -> b p k d", k=K) for part in (mean, log_scale))
        return Mixture(log_weight.log_softmax(-1), DiagonalNormal(mean, bounded(log_scale)))

    @in_fp32
    def draw(self, h: Tensor, samples: int = 1, generator: Generator | None = None) -> Draw:
        mixture = self.mixture(h)
        with torch.no_grad():
            noise = noise_for(h, samples, self.dim, generator)
            uniform = torch.rand(noise.shape[:-1], generator=generator, device=h.device, dtype=h.dtype)
            upto = mixture.log_weight.exp().cumsum(-1)
            k = (uniform[..., None] * upto[..., -1:] >= upto).sum(-1)  # (S, B, P), the last sum is 1 but for rounding
            k = k.clamp_max(self.config.components - 1)[..., None, None].expand(*noise.shape[:-1], 1, self.dim)
            each = mixture.each.move(noise[..., None, :])  # (S, B, P, K, D)
            drawn = each.gather(-2, k)[..., 0, :]
        z = mixture.implicit(drawn)
        return Draw(z, mixture.log_prob(z))

    @in_fp32
    def log_prob(self, h: Tensor, z: Tensor) -> Tensor:
        return self.mixture(h).log_prob(z.to(h.dtype))

    @in_fp32
    def center(self, h: Tensor) -> Tensor:
        mixture = self.mixture(h)
        return (mixture.log_weight.exp()[..., None] * mixture.each.mean).sum(-2)

    @in_fp32
    def deviation(self, h: Tensor) -> Tensor:
        mixture = self.mixture(h)
        weight, mean = mixture.log_weight.exp()[..., None], mixture.each.mean
        center = (weight * mean).sum(-2, keepdim=True)
        variances = torch.exp(2 * mixture.each.log_scale) + (mean - center).square()
        return (weight * variances).sum(-2).sqrt()


def _phi(noise: Tensor) -> Tensor:
    """Return the distribution function of N(0, 1)."""
    return 0.5 * torch.erfc(-noise / math.sqrt(2))
