"""The contract of an objective, and the evidence of a batch that all of them are made of.

Shapes: B images, S draws of z for each, P places, D numbers a place; all in nats.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from smalti.tokenizer.criterion.objective.config import ObjectiveConfig


class Evidence:
    """The log-probabilities of images and of z drawn from q(z | x)."""

    def __init__(self, nll: Tensor, z: Tensor, log_q: Tensor | None, kl: Tensor | None):
        """Take −log p(x | z), (S, B); z, (S, B, P, D); log q(z | x), (S, B, P), of the autoencoder None; and
        KL(q(z | x) || N(0, I)) in closed form, in the finest parts of which it is a sum, (B, P, G), or None."""
        self.nll, self.z, self.log_q, self.kl = nll, z, log_q, kl

    @cached_property
    def log_p(self) -> Tensor:
        """Return log p(z) of N(0, I), (S, B, P)."""
        return torch.distributions.Normal(0.0, 1.0).log_prob(self.z).sum(-1)

    @cached_property
    def rate(self) -> Tensor:
        """Return the KL in its parts, (B, P, G): in closed form where there is one, else the mean over the draws.

        Raises:
            ValueError: the autoencoder has no KL.
        """
        if self.kl is not None:
            return self.kl
        if self.log_q is None:
            raise ValueError("an autoencoder has no q(z | x), and so no KL")
        return (self.log_q - self.log_p).mean(0)[..., None]

    @property
    def negative_elbo(self) -> Tensor:
        """Return −ELBO = E_q[−log p(x | z)] + KL(q(z | x) || p(z)) of each image, (B,)."""
        return self.nll.mean(0) + self.rate.sum((1, 2))

    @property
    def log_weights(self) -> Tensor:
        """Return log p(x, z) − log q(z | x) of each draw, (S, B). Raises `ValueError` of the autoencoder."""
        if self.log_q is None:
            raise ValueError("an autoencoder has no q(z | x), and so no bound")
        return (self.log_p - self.log_q).sum(-1) - self.nll


class Objective(ABC):
    """What training a VAE minimises, in terms by name."""

    config_class: ClassVar[type[ObjectiveConfig]]

    @abstractmethod
    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        """Return the terms (), in nats an image, each as it counts, at a share `progress` of the steps."""


def build_objective(config: ObjectiveConfig) -> Objective:
    """Return the objective of a config."""
    objective: Objective = config.builds(config)
    return objective
