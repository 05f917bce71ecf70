"""The cost of an image in nats where z is a vector drawn from q(z | x), under a prior of vectors.

    −log p(x) ≤ E_q[−log p(x | z)] + E_q[log q(z | x) − log p(z)]         distortion + rate: minus the ELBO
    −log p(x) ≤ E −log 1/K Σ_k p(x | z_k) p(z_k) / q(z_k | x)             tighter, by K draws (Burda et al. 2016)

Of a prior that says no more than a bound on −log p(z) the first is a bound still, with that bound in its place. The
second is not given: that bound is estimated by a few draws, and the mean of exp of an estimate is too large.

Both are bounds and no lengths: a coder would need bits back. The rate is given for two priors: N(0, I), which the VAE
was trained for, and the learned one, by which stage two draws: it can save what of the rate q(z) = E_x q(z | x) costs
for not being N(0, I). Both rates are means over the same draws. The KL has a formula against N(0, I) alone, which
tokenizer/evaluate.py uses; here none is mixed in. Whoever is given the class pays ln of the number of classes for it,
as in `bits.py`: a prior by its own rate, a tokenizer by both.

Shapes: images (B, C, H, W) uint8; labels (B,), as the prior's condition has them; nats (B,) float64; z (S, B, T).
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from smalti.common.data.pixels import to_float
from smalti.pipeline.evaluation.bits import likely
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Scores
from smalti.tokenizer.criterion.objective.iwae import importance_weighted_nll
from smalti.tokenizer.posterior.normal import standard_log_prob
from smalti.tokenizer.posterior.of_images import ImagePosteriors

VECTOR_PRIORS = ("standard_normal", "learned")
PIXELS = 2**23  # numbers of decoded images at once


class VectorNats(NamedTuple):
    """The nats of B images: of their pixels, and of their vectors by each of `VECTOR_PRIORS`."""

    distortion: Tensor  # (B,) E_q[−log p(x | z)]
    rate: dict[str, Tensor]  # (B,) E_q[log q(z | x) − log p(z)], with −log p(label) where the label is given
    importance: dict[str, Tensor]  # (B,) the importance-weighted bound of all draws, of exact priors alone


class _Draws(NamedTuple):
    """The nats of S draws for each of B images."""

    distortion: Tensor  # (S, B)
    rate: dict[str, Tensor]  # (S, B)


def no_vector_bits(pipeline: ImagePipeline) -> str | None:
    """Return why an image has no cost in bits under the pipeline's prior of vectors, or None where it has one."""
    prior, config = pipeline.prior, pipeline.tokenizer.config
    if not isinstance(prior, Scores):
        return f"a prior of kind {prior.config.architecture.name()} does not say how likely vectors are"
    pixels = torch.zeros(1, config.image_channels, *config.image_size, device=pipeline.device)
    label = torch.zeros(1, dtype=torch.int64, device=pipeline.device)
    if likely(pipeline).posteriors(pixels, label) is None:
        return "an autoencoder has no bits: its z is a point, of which no q(z | x) is a density"
    return None


@torch.inference_mode()
def vector_nats(
    pipeline: ImagePipeline, images: Tensor, labels: Tensor, samples: int, generator: Generator
) -> VectorNats:
    """Return the nats of images by `samples` draws of each, some at a time; `generator` is on the pipeline's device.

    Raises:
        ValueError: the tokenizer's posterior has no density.
    """
    pixels = to_float(images.to(pipeline.device))
    posteriors = likely(pipeline).posteriors(pixels, labels)
    if posteriors is None:
        raise ValueError("this tokenizer's posterior has no density, and so no bound")
    at_once = max(1, PIXELS // pixels.numel())
    parts = [
        _draws(pipeline, posteriors, pixels, labels, min(at_once, samples - start), generator)
        for start in range(0, samples, at_once)
    ]
    distortion = torch.cat([part.distortion for part in parts])
    rate = {name: torch.cat([part.rate[name] for part in parts]) for name in VECTOR_PRIORS}
    assert isinstance(pipeline.prior, Scores)  # `no_vector_bits` has asked
    exact = [name for name in VECTOR_PRIORS if name != "learned" or pipeline.prior.exact]
    return VectorNats(
        distortion.mean(0),
        {name: each.mean(0) for name, each in rate.items()},
        {name: importance_weighted_nll(-distortion - rate[name]) for name in exact},
    )


def _draws(
    pipeline: ImagePipeline,
    posteriors: ImagePosteriors,
    pixels: Tensor,
    labels: Tensor,
    samples: int,
    generator: Generator,
) -> _Draws:
    """Return the nats of so many draws at once, on the CPU."""
    tokenizer, prior = likely(pipeline), pipeline.prior
    assert isinstance(prior, Scores)  # `no_vector_bits` has asked
    z, log_q = posteriors.draw(samples, generator)
    flat, label = z.flatten(0, 1), labels.to(pipeline.device).repeat(samples)  # (S B, T), (S B,)
    output = tokenizer.output(flat, label).double()
    distortion = tokenizer.likelihood.nll(output, pixels.double().repeat(samples, 1, 1, 1))
    log_p = {
        "standard_normal": standard_log_prob(flat.double()),
        "learned": prior.log_prob(flat, pipeline.told_to_prior(label)).double(),
    }
    conditions = {"standard_normal": tokenizer.condition, "learned": pipeline.condition}
    rate = {
        name: log_q.double() - each.view_as(log_q) + conditions[name].nats(labels).to(log_q.device)
        for name, each in log_p.items()
    }
    return _Draws(distortion.view_as(log_q).cpu(), {name: each.cpu() for name, each in rate.items()})
