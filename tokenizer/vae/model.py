"""The VAE: an encoder gives a posterior q(z | x), a decoder a likelihood p(x | z), and p(z) is N(0, I).

    −log p(x) ≤ E_q[−log p(x | z)] + KL(q(z | x) || p(z))

Kingma and Welling (2014), https://arxiv.org/abs/1312.6114, eq. 3. The code of an image, which `encode` gives, is the
centre of its posterior.

Told of the class y, they are q(z | x, y) and p(x | z, y), with the same p(z) for every class, so that z holds what the
class leaves open: −log p(x | y) ≤ E_q[−log p(x | z, y)] + KL(q(z | x, y) || p(z)), as Kingma et al. (2014, model M2),
https://arxiv.org/abs/1406.5298, and Sohn et al. (2015), https://papers.nips.cc/paper/5775. y is a learnt vector.

Shapes: images (B, C, H, W) in [-1, 1]; condition (B,); told (B, E), the vector of y, E = 0 without; h (B, P, N), the
numbers of q at P places; z (S, B, P, D), S draws; latents (B, P · D); output (B, outputs, H, W), which a likelihood
reads.
"""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from smalti.common.condition import Condition
from smalti.tokenizer.base import DIVERGED, Bound, LikelihoodTokenizer, Terms, TrainedTokenizer, check_finite
from smalti.tokenizer.criterion.likelihood.base import build_likelihood
from smalti.tokenizer.criterion.likelihood.levels import LOG_WIDTH
from smalti.tokenizer.criterion.objective.base import Evidence, build_objective
from smalti.tokenizer.criterion.objective.iwae import importance_weighted_nll
from smalti.tokenizer.network.base import Sizes, build_network
from smalti.tokenizer.network.convolutional import last_weight
from smalti.tokenizer.posterior.base import Draw, build_posterior
from smalti.tokenizer.posterior.of_images import ImagePosteriors
from smalti.tokenizer.vae.config import VAEConfig
from smalti.tokenizer.vae.linear import linear_gaussian

DECODED = 2**12  # draws of z that are decoded at once, when a bound is computed
TOLD = 16  # E, numbers of the vector of a class


@VAEConfig.register
class VAE(LikelihoodTokenizer, TrainedTokenizer):
    """The VAE, which `tokenizer/train.py` trains."""

    config: VAEConfig

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        sizes = Sizes(
            image_channels=config.image_channels,
            image_size=config.image_size,
            whole=config.grid is None,
            numbers=config.posterior.outputs(config.latent_dim),
            dim=config.latent_dim,
            outputs=config.likelihood.outputs(config.image_channels),
            told=TOLD if config.conditional else 0,
        )
        self.class_vectors = nn.Embedding(config.condition.num_classes, TOLD) if config.conditional else None
        self.network = build_network(config.network, sizes)
        self.posterior = build_posterior(config.posterior, config.latent_dim)
        self.likelihood = build_likelihood(config.likelihood, config.image_channels)
        self.objective = build_objective(config.objective)
        self.progress = 1.0  # share of the steps done, on which the objective may depend

    @property
    def condition(self) -> Condition:
        return self.config.condition

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Terms:
        told = self.vector_of(condition, images)
        h = self.network.encode(images, told)
        draw, output = self._drawn(h, told, self.config.objective.samples)
        evidence = self._scored(images, h, draw, output)
        dimensions = images[0].numel()
        nats = self.objective.terms(evidence, self.progress)
        watched = {"distortion": evidence.nll.mean() / (math.log(2) * dimensions)}
        if self.config.posterior.stochastic:
            watched["rate"] = evidence.rate.sum((1, 2)).mean() / (math.log(2) * dimensions)
        losses = {name: term / dimensions for name, term in nats.items()}
        return Terms(losses, watched, h, output=output[: len(images)])  # of the first draw

    def vector_of(self, condition: Tensor | None, samples: Tensor) -> Tensor:
        """Return what the network is told (B, E) of samples (B, ...) of classes (B,)."""
        if self.class_vectors is None:
            return samples.new_zeros(len(samples), 0)
        found: Tensor = self.class_vectors(condition)
        return found

    def evidence(
        self, images: Tensor, h: Tensor, told: Tensor, samples: int, generator: Generator | None = None
    ) -> Evidence:
        """Return the log-probabilities of images and of `samples` draws from their posteriors, given by h."""
        return self._scored(images, h, *self._drawn(h, told, samples, generator))

    def _drawn(self, h: Tensor, told: Tensor, samples: int, generator: Generator | None = None) -> tuple[Draw, Tensor]:
        """Return `samples` draws from posteriors given by h, and their output (S B, outputs, H, W)."""
        draw = self.posterior.draw(h, samples, generator)
        return draw, self._decoded(draw.z.flatten(0, 1), told.repeat(len(draw.z), 1))

    def _scored(self, images: Tensor, h: Tensor, draw: Draw, output: Tensor) -> Evidence:
        """Return the log-probabilities of images and of draws, given their output."""
        S, B = draw.z.shape[:2]
        nll = self.likelihood.nll(output, images.repeat(S, 1, 1, 1)).view(S, B)
        return Evidence(nll, draw.z, draw.log_q, self.posterior.kl(h))

    def anneal(self, progress: float) -> None:
        self.progress = progress

    def last_layer(self) -> Parameter:
        return last_weight(self.network.decoder)

    def error_weight(self) -> Tensor | float:
        return 1 / self.likelihood.weight()  # a nat counts 1 here, and so much more than beside a codebook's losses

    @torch.no_grad()
    def bound(
        self,
        images: Tensor,
        samples: int,
        generator: Generator | None = None,
        condition: Tensor | None = None,
    ) -> Bound | None:
        """Return bounds on −log p(images), computed `DECODED` draws at a time."""
        if not self.config.posterior.stochastic:
            return None
        told, at_once = self.vector_of(self.told(condition, images), images), DECODED // max(1, len(images)) or 1
        h = self._numbers(images, told)
        parts = [
            self.evidence(images, h, told, min(at_once, samples - start), generator)
            for start in range(0, samples, at_once)
        ]
        shares = torch.tensor([len(part.nll) / samples for part in parts], device=images.device)
        return Bound(
            torch.cat([part.nll for part in parts]).mean(0),
            torch.tensordot(shares, torch.stack([part.rate for part in parts]), 1),
            importance_weighted_nll(torch.cat([part.log_weights for part in parts])),
            parts[0].z[0].flatten(1),
        )

    @torch.no_grad()
    def posteriors(self, images: Tensor, condition: Tensor | None = None) -> ImagePosteriors | None:
        if not self.config.posterior.stochastic:
            return None
        told = self.vector_of(self.told(condition, images), images)
        return ImagePosteriors(self.posterior, self._numbers(images, told))

    @torch.no_grad()
    def exact_nll(self, images: Tensor) -> dict[str, Tensor]:
        """Return −log p(images) of a linear decoder with a Gaussian likelihood: that of the density. Of a decoder that
        is told of the class, which has a p(x) for each, nothing."""
        model = None if self.condition.told else linear_gaussian(self.network, self.likelihood)
        if model is None:
            return {}
        return {"density": -model.log_prob(images.flatten(1)) - images.shape[1:].numel() * LOG_WIDTH}

    def _decoded(self, z: Tensor, told: Tensor) -> Tensor:
        """Return the output of vectors (B, P, D)."""
        dtype = next(self.network.parameters()).dtype
        return self.network.decode(z.to(dtype), told.to(dtype))

    def _encode(self, images: Tensor, condition: Tensor | None) -> Tensor:
        return self.posterior.center(self._numbers(images, self.vector_of(condition, images))).flatten(1)

    @property
    def has_moments(self) -> bool:
        return self.config.posterior.stochastic

    @torch.no_grad()
    def deviation(self, images: Tensor, condition: Tensor | None = None) -> Tensor | None:
        if not self.has_moments:
            return None
        told = self.vector_of(self.told(condition, images), images)
        return self.posterior.deviation(self._numbers(images, told)).flatten(1)

    def _numbers(self, images: Tensor, told: Tensor) -> Tensor:
        """Return h (B, P, N) of images. Raises `UserError` where it is not finite."""
        h = self.network.encode(images, told)
        check_finite(h, DIVERGED)
        return h

    def _output(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        z = latents.view(len(latents), self.config.layout.places, self.config.latent_dim)
        return self._decoded(z, self.vector_of(condition, latents))
