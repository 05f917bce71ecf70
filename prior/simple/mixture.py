"""A mixture of Gaussians as a prior over vectors: p(z | class) = Σ_k w_k N(z; μ_k, Σ_k), which EM fits.

Shapes: G mixtures, one a class and the last one for none; log_weights (G, K), means (G, K, T), scale (G, K), (G, K, T),
(G, K, T, T) or (G, T, T), as `common/gaussian_mixture.py` has it. Saved in fp32, computed in fp64.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smalti.common.condition import Classes, Nothing
from smalti.common.errors import UserError
from smalti.common.gaussian_mixture import GaussianMixture
from smalti.prior.config import PriorConfig
from smalti.prior.simple.base import VectorPrior
from smalti.prior.simple.config import MixtureConfig


@MixtureConfig.register
class MixturePrior(VectorPrior):
    """A mixture for each class, and one for samples without a class; `temperature` scales the deviations."""

    log_weights: Tensor
    means: Tensor
    scale: Tensor

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        if not isinstance(config.condition, Classes | Nothing):
            raise UserError(
                f"model.kind mixture has a mixture for each class, and samples are told of {config.condition.name()} "
                "here: give --condition nothing"
            )
        G, T, a = config.condition.num_classes + 1, config.layout.length, self.architecture(config)
        K = a.components
        shape = {"spherical": (K,), "diagonal": (K, T), "full": (K, T, T), "tied": (T, T)}[a.covariance]
        one = torch.eye(T) if a.covariance in ("full", "tied") else torch.ones(())
        self.register_buffer("log_weights", torch.full((G, K), -math.log(K)))
        self.register_buffer("means", torch.zeros(G, K, T))
        self.register_buffer("scale", one.expand(G, *shape).clone())

    @staticmethod
    def architecture(config: PriorConfig) -> MixtureConfig:
        assert isinstance(config.architecture, MixtureConfig)  # the registry builds no other
        return config.architecture

    def mixture(self, condition: int) -> GaussianMixture:
        """Return the mixture of a condition, in fp64."""
        weights, means, scale = (each[condition].double() for each in (self.log_weights, self.means, self.scale))
        return GaussianMixture(self.architecture(self.config).covariance, weights.log_softmax(0), means, scale)

    def take(self, mixtures: Sequence[GaussianMixture]) -> None:
        """Take these mixtures, one a condition, the last one for none."""
        for condition, mixture in enumerate(mixtures):
            for name in ("log_weights", "means", "scale"):
                getattr(self, name)[condition] = getattr(mixture, name)

    def numbers(self, latents: Tensor, condition: Tensor) -> Tensor:
        found = torch.zeros_like(latents, dtype=torch.float64)
        for told in condition.unique().tolist():
            rows = condition == told
            found[rows] = self.mixture(told).log_prob_of_numbers(latents[rows])
        return found

    def log_prob_around(self, latents: Tensor, condition: Tensor, numbers: Tensor) -> Tensor:
        order, known = known_first(numbers), int(numbers.sum())
        found = torch.zeros(len(latents), dtype=torch.float64, device=latents.device)
        for told in condition.unique().tolist():
            rows = condition == told
            terms = self.mixture(told).in_order(order).log_prob_of_numbers(latents[rows][:, order])
            found[rows] = terms[:, known:].sum(1)
        return found

    def drawer(self, condition: int, numbers: Tensor, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
        order = known_first(numbers)
        mixture = self.mixture(condition)
        if numbers.any():
            mixture = mixture.in_order(order)

        def draw(normal: Tensor, given: Tensor) -> Tensor:
            return torch.empty_like(normal[1:]).scatter(0, order, mixture.draw(normal, given, temperature))

        return draw


def known_first(numbers: Tensor) -> Tensor:
    """Return the order of numbers (T,) that has the known ones first, (T,)."""
    return numbers.logical_not().int().argsort(stable=True)
