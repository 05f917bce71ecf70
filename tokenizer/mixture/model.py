"""A mixture of Gaussians of patches: of p(x) = Σ_k w_k N(x; μ_k, Σ_k) the code is the likeliest k given the patch.

K-means is its limit of one vanishing variance and equal weights (Bishop 2006, sec. 9.3.2). Patches of an image are
independent, so log p of an image is a sum over them, exactly; a patch may be the whole image, a model of its pixels.

Two numbers are called −log p(x), and `exact_nll` gives both where it can:

    levels     Σ_k w_k Π_d P_k(level of x_d), the probability of an 8-bit image. Of correlated pixels it has no formula
    density    −log p at the pixels, less log of the width of a level for each. Averaged over noise of that width it
               would bound the probability (Theis et al. 2016, https://arxiv.org/abs/1511.01844, sec. 3.1); at the
               pixels themselves it is no bound, and narrow components make it as good as one likes

What a code decodes to is its mean, with the one variance of all codes that K-means has, too.

Shapes: as of `tokenizer/patches/model.py`. EM and log p are computed in fp64, and the model is kept in fp32.
"""

import math
from typing import Self

import torch
from torch import Generator, Tensor

from smalti.common.gaussian_mixture import EMPTY, TOGETHER, GaussianMixture, Moments, e_step, first_mixture, m_step
from smalti.tokenizer.criterion.likelihood.levels import LOG_WIDTH, edges, log_normal_mass
from smalti.tokenizer.mixture.config import GaussianMixtureConfig
from smalti.tokenizer.patches.model import PatchTokenizer


@GaussianMixtureConfig.register
class GaussianMixtureTokenizer(PatchTokenizer):
    """The mixture of Gaussians of patches, which `tokenizer/cluster.py` fits."""

    objective = "−log p(x) of the density, nats a pixel and channel"
    config: GaussianMixtureConfig
    log_weights: Tensor  # (K,)
    centres: Tensor  # (K, D)
    scale: Tensor  # (K,), (K, D), (K, D, D) or (D, D): as in `GaussianMixture`

    def __init__(self, config: GaussianMixtureConfig):
        super().__init__(config)
        K, D = config.codebook_size, config.code_dim
        shape = {"spherical": (K,), "diagonal": (K, D), "full": (K, D, D), "tied": (D, D)}[config.covariance]
        one = torch.eye(D) if config.covariance in ("full", "tied") else torch.ones(())
        self.register_buffer("log_weights", torch.full((K,), -math.log(K)))
        self.register_buffer("centres", torch.zeros(K, D))
        self.register_buffer("scale", one.expand(shape).clone())

    @property
    def mixture(self) -> GaussianMixture:
        """Return the mixture, in fp64."""
        weights, means, scale = (each.double() for each in (self.log_weights, self.centres, self.scale))
        return GaussianMixture(self.config.covariance, weights.log_softmax(0), means, scale)

    def for_fitting(self) -> Self:
        return self.double()

    def take(self, mixture: GaussianMixture) -> None:
        """Take this mixture."""
        self.log_weights.copy_(mixture.log_weights)
        self.centres.copy_(mixture.means)
        self.scale.copy_(mixture.scale)

    @property
    def means(self) -> Tensor:
        return self.centres.float()

    @torch.no_grad()
    def codes_of(self, patches: Tensor) -> Tensor:
        mixture = self.mixture
        some = patches.split(max(1, TOGETHER // max(self.centres.shape)))
        return torch.cat([(mixture.log_weights + mixture.log_prob_each(few.double())).argmax(1) for few in some])

    def begin(self, sample: Tensor, generator: Generator) -> None:
        c = self.config
        self.take(
            first_mixture(sample, c.codebook_size, c.covariance, regularization=c.regularization, generator=generator)
        )

    def e_step(self, patches: Tensor) -> tuple[Tensor, ...]:
        """Return the `Moments` of patches (N, D), and the squared distance (1,) to the means of their codes."""
        squared = (patches - self.means[self.codes_of(patches)]).double().square().sum()
        return *e_step(patches, self.mixture), squared[None]

    def m_step(self, sums: tuple[Tensor, ...], sample: Tensor) -> dict[str, float]:
        moments, squared = Moments(*sums[:-1]), sums[-1].item()
        self.take(m_step(moments, self.mixture, self.config.regularization))
        numbers = moments.points.item() * self.config.code_dim
        self.fit_likelihood(squared / numbers)
        nats = -moments.log_likelihood.item() / numbers - LOG_WIDTH
        return {"objective": nats, "mse": squared / numbers, "empty": int((moments.weights < EMPTY).sum())}

    def warnings(self) -> list[str]:
        narrow = self.mixture.narrowest() <= 2 * self.config.regularization
        if not narrow.any():
            return []
        return [
            f"the covariances of {int(narrow.sum())} of {len(narrow)} components are singular, but for the "
            f"regularization {self.config.regularization:g}: their patches do not fill all directions. Codes are not "
            "harmed; −log p(x) is that of the regularization there"
        ]

    @torch.no_grad()
    def exact_nll(self, images: Tensor) -> dict[str, Tensor]:
        """Return −log p(images), (B,) each: of the density, and of a covariance without correlations of the levels."""
        patches, numbers = self.patches(images).double(), images.shape[1:].numel()
        density = self.mixture.log_prob(patches).view(len(images), -1).sum(1)
        found = {"density": -density - numbers * LOG_WIDTH}
        if self.config.covariance in ("spherical", "diagonal"):
            together = max(1, TOGETHER // self.centres.numel())
            levels = torch.cat([self._log_prob_of_levels(few) for few in patches.split(together)])
            found["levels"] = -levels.view(len(images), -1).sum(1)
        return found

    def _log_prob_of_levels(self, patches: Tensor) -> Tensor:
        """Return log p of the 8-bit levels of patches (n, D), (n,)."""
        mixture = self.mixture
        mass = log_normal_mass(*edges(patches[:, None], mixture.means, mixture.deviations.log()))  # (n, K, D)
        return (mixture.log_weights + mass.sum(2)).logsumexp(1)
