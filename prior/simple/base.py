"""The base of the priors over vectors: exact densities, and draws that are a function of the sample's seed alone.

Shapes: condition (B,), latents (B, T) float32, known (B, P) bool over the places.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from smalti.common.seeds import normals
from smalti.prior.base import Prior
from smalti.prior.sampling_config import SamplingConfig


class VectorPrior(Prior):
    """A distribution over vectors with an exact density. Its sampler draws around any known places, given all."""

    takes: ClassVar[frozenset[str]] = frozenset({"temperature"})
    heeds_all: ClassVar[bool] = True
    exact = True

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def numbers(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Return log p of each number given those before it, (B, T) float64."""

    @abstractmethod
    def log_prob_around(self, latents: Tensor, condition: Tensor, numbers: Tensor) -> Tensor:
        """Return log p(latents | condition, the numbers that are known) of samples with the same numbers known.

        Args:
            numbers: (T,) bool.
        Returns:
            (B,) float64.
        """

    @abstractmethod
    def drawer(self, condition: int, numbers: Tensor, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what draws a sample (T,) of a condition from (1 + T,) normal numbers and the known numbers in order.

        Args:
            numbers: (T,) bool, those that are known.
        """

    # ----------------------------------------------------------------------------------------------- what follows of it

    def loss(self, latents: Tensor, condition: Tensor, forward: nn.Module) -> Tensor:
        return -self.numbers(latents, condition).float()

    @torch.no_grad()
    def validation(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return -self.numbers(latents, condition).float()

    def nats(self, latents: Tensor, condition: Tensor, rows: Sequence[int]) -> Tensor:
        return self.validation(latents, condition, rows)

    @torch.no_grad()
    def log_prob(self, codes: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        self.check(codes, condition, known)
        if known is None:
            return self.numbers(codes, condition).sum(1)
        found = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for mask, rows in same_rows(known):
            found[rows] = self.log_prob_around(codes[rows], condition[rows], self.known_numbers(mask))
        return found

    def heeds(self, known: Tensor) -> bool:
        return True

    def known_numbers(self, known: Tensor) -> Tensor:
        """Return which numbers are known, (T,) bool, of known places (P,)."""
        depths = [known.new_full((grid.places,), grid.depth, dtype=torch.int64) for grid in self.config.layout.grids]
        return known.repeat_interleave(torch.cat(depths))

    def sampler(self, config: SamplingConfig, batch_size: int | None = None) -> "VectorSampler":
        self.check_sampling(config)
        return VectorSampler(self, config.temperature)


class VectorSampler:
    """A sampler of one prior at one temperature. It draws sample after sample, so that none depends on its batch."""

    def __init__(self, prior: VectorPrior, temperature: float):
        self.prior, self.temperature = prior, temperature

    @torch.no_grad()
    def __call__(
        self,
        condition: Tensor,
        seeds: Sequence[int],
        latents: Tensor | None = None,
        known: Tensor | None = None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """Return latents (B, T) float32, as `prior.base.Sampler` says."""
        prior, B, device = self.prior, len(condition), self.prior.device
        layout = prior.config.layout
        if len(seeds) != B:
            raise ValueError(f"one seed a sample: got {B} samples and {len(seeds)} seeds")
        if (latents is None) != (known is None):
            raise ValueError("latents and known are given together or not at all")
        if latents is None or known is None:
            latents, known = torch.zeros(B, layout.length), torch.zeros(B, layout.places, dtype=torch.bool)
        condition, latents, known = condition.to(device), latents.to(device), known.to(device)
        prior.check(latents, condition, known)
        drawn = latents.clone()
        for mask, alike in same_rows(known):
            numbers = prior.known_numbers(mask)
            for told in condition[alike].unique().tolist():
                draw = prior.drawer(told, numbers, self.temperature)
                for row in alike[condition[alike] == told].tolist():
                    normal = normals(seeds[row], 1 + layout.length).to(device)
                    drawn[row, ~numbers] = draw(normal, latents[row, numbers].double())[~numbers].float()
                    progress(1)
        return drawn


def same_rows(known: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each mask (P,) among known (B, P), with the rows (n,) that have it."""
    masks, which = known.unique(dim=0, return_inverse=True)
    return [(mask, (which == i).nonzero()[:, 0]) for i, mask in enumerate(masks)]
