"""The posteriors q(z | x) of a batch of images, whose vectors lie as the layout has them.

Shapes: h (B, P, N), encoder output; z (S, B, T), S draws of T = P · D numbers; log q (S, B) in nats.
"""

from typing import NamedTuple

from torch import Generator, Tensor

from smalti.tokenizer.posterior.base import Posterior


class ImagePosteriors(NamedTuple):
    """q(z | x) of B images, the product over their places. It has a density."""

    posterior: Posterior
    h: Tensor  # (B, P, N)

    @property
    def scores_any(self) -> bool:
        """Return whether `log_prob` costs about what a draw does."""
        return self.posterior.config.scores_any

    def draw(self, samples: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return z (S, B, T) fp32 and log q(z | x) of it (S, B).

        Args:
            samples: S, draws for each image.
            generator: on the device of h.
        """
        drawn = self.posterior.draw(self.h, samples, generator)
        assert drawn.log_q is not None  # only a posterior with a density is one of images
        return drawn.z.flatten(2), drawn.log_q.sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z | x) of z (S, B, T), or of z (S, 1, T) under the posterior of every image: (S, B)."""
        return self.posterior.log_prob(self.h, z.unflatten(2, (self.h.shape[1], -1))).sum(-1)
