"""The linear Gaussian model, the one VAE whose posterior and log p(x) have formulas.

    p(z) = N(0, I)      p(x | z) = N(x; W z + b, diag(σ²))
    p(z | x) = N(Λ⁻¹ Wᵀ diag(σ²)⁻¹ (x − b), Λ⁻¹),   Λ = I + Wᵀ diag(σ²)⁻¹ W
    p(x) = N(x; b, W Wᵀ + diag(σ²))

Tipping and Bishop (1999), https://doi.org/10.1111/1467-9868.00196, eq. 5 to 8; Bishop (2006), eq. 2.113 to 2.117. The
posterior is Bayes' rule of Gaussians, and Λ does not depend on x: one covariance for all images.

Shapes: images as vectors x (B, d), z (B, D), W (d, D), b and σ² (d,). All is fp64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.tokenizer.criterion.likelihood.base import Likelihood
from smalti.tokenizer.criterion.likelihood.gaussian import Gaussian
from smalti.tokenizer.network.base import Network
from smalti.tokenizer.network.linear import LinearNetwork


class LinearGaussian(NamedTuple):
    """p(z) p(x | z), linear and Gaussian."""

    weight: Tensor  # W (d, D)
    offset: Tensor  # b (d,)
    variance: Tensor  # σ² (d,)

    @property
    def precision(self) -> Tensor:
        """Return Λ (D, D), the inverse of the posterior's covariance."""
        eye = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        return eye + self.weight.T @ (self.weight / self.variance[:, None])

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (B, D) and the covariance (D, D) of p(z | x)."""
        pulled = (x.double() - self.offset) / self.variance @ self.weight
        factor = torch.linalg.cholesky(self.precision)
        return torch.cholesky_solve(pulled.T, factor).T, torch.cholesky_inverse(factor)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), a density: by |W Wᵀ + diag(σ²)| = |Λ| Π σ², without a (d, d) matrix."""
        away = x.double() - self.offset
        mean, _ = self.posterior(x)
        # (x − b)ᵀ (W Wᵀ + diag(σ²))⁻¹ (x − b), by Woodbury
        squared = (away.square() / self.variance).sum(1) - (mean @ self.precision * mean).sum(1)
        log_det = self.precision.logdet() + self.variance.log().sum()
        return -0.5 * (squared + log_det + len(self.offset) * math.log(2 * math.pi))

    def diagonal_gap(self) -> Tensor:
        """Return the nats (), by which the best q of a diagonal covariance falls short of log p(x), at every x.

        Its mean is the posterior's and its variances are 1 / Λ_dd: the gap is ½ (Σ log Λ_dd − log |Λ|).
        """
        return 0.5 * (self.precision.diagonal().log().sum() - self.precision.logdet())


def linear_gaussian(network: Network, likelihood: Likelihood) -> LinearGaussian | None:
    """Return the model of a VAE's decoder, or None where it is not linear or not Gaussian."""
    if not isinstance(network, LinearNetwork) or not isinstance(likelihood, Gaussian):
        return None
    weight, offset = (each.detach().double() for each in (network.decoder.weight, network.decoder.bias))
    channels = len(likelihood.log_scale)
    variance = (2 * likelihood.log_scale.detach().double()).exp().repeat_interleave(len(offset) // channels)
    return LinearGaussian(weight, offset, variance)
