"""The contract of every posterior q(z | x), and what it draws.

A posterior knows places and no grid, and places are independent given x: q(z | x) is their product.

Shapes, for S draws of B samples of P places, vectors of D numbers:
    h          (B, P, N)     encoder output, N numbers a place: `config.outputs(D)`
    z          (S, B, P, D)
    log_q      (S, B, P)     in nats
    kl         (B, P, G)     in nats, in G parts of which KL(q || N(0, I)) of a place is the sum

Given a generator, a draw is a function of h, of its shape and of the generator's state. The noise of all draws and
places is drawn at once, so another B takes other noise; with the noise the same, a place depends on its own row of h
alone, up to the rounding that shapes bring.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.posterior.config import PosteriorConfig

Q = TypeVar("Q", bound="Posterior")
A = ParamSpec("A")
R = TypeVar("R")


class Draw(NamedTuple):
    """The output of every posterior. A NamedTuple, which DDP, Accelerate and torch.compile see through."""

    z: Tensor  # (S, B, P, D) fp32; its gradient reaches h
    log_q: Tensor | None  # (S, B, P) log q(z | x) of what was drawn; None of `none`, which has no density


class Posterior(nn.Module, ABC):
    """q(z | x), given the encoder's output h. A kind marks each of its methods with `in_fp32`."""

    def __init__(self, config: PosteriorConfig, dim: int):
        super().__init__()
        self.config = config
        self.dim = dim

    @abstractmethod
    def draw(self, h: Tensor, samples: int = 1, generator: Generator | None = None) -> Draw:
        """Return S draws, reparameterised: the gradient of a mean over them estimates that of E_q without bias."""

    @abstractmethod
    def log_prob(self, h: Tensor, z: Tensor) -> Tensor:
        """Return log q(z | x) of any z (S, B, P, D): (S, B, P)."""

    def kl(self, h: Tensor) -> Tensor | None:
        """Return KL(q || N(0, I)) in its finest parts (B, P, G), or None where there is no formula.

        There the caller takes the mean of log_q − log p(z) over draws, and of that alone: the two are never mixed.
        """
        return None

    @abstractmethod
    def center(self, h: Tensor) -> Tensor:
        """Return E_q[z] (B, P, D); of a flow, which has no formula for it, the mean over fixed draws."""

    @abstractmethod
    def deviation(self, h: Tensor) -> Tensor:
        """Return the standard deviation under q of each number (B, P, D); of a flow that of fixed draws."""


def in_fp32(method: Callable[Concatenate[Q, Tensor, A], R]) -> Callable[Concatenate[Q, Tensor, A], R]:
    """Return a posterior's method that computes in fp32, or in fp64 where h is that already, under autocast too.

    Variances lie orders of magnitude apart, and bf16 has 3 digits.
    """

    @wraps(method)
    def exact(self: Q, h: Tensor, *args: A.args, **kwargs: A.kwargs) -> R:
        N = self.config.outputs(self.dim)
        assert h.ndim == 3 and h.shape[2] == N, f"h must be (B, P, {N}), got {tuple(h.shape)}"
        with torch.autocast(h.device.type, enabled=False):
            return method(self, fp32(h), *args, **kwargs)

    return exact


def noise_for(h: Tensor, samples: int, dim: int, generator: Generator | None) -> Tensor:
    """Return standard normal noise (S, B, P, D) of the type and on the device of h (B, P, N)."""
    return torch.randn(samples, *h.shape[:2], dim, generator=generator, device=h.device, dtype=h.dtype)


def build_posterior(config: PosteriorConfig, dim: int) -> Posterior:
    """Return the posterior of a config over vectors of `dim` numbers, its weights, if any, drawn at random."""
    posterior: Posterior = config.builds(config, dim)
    return posterior
