"""The cost of an image in nats: rate + distortion, the two terms of the ELBO.

    −log p(x) ≤ −log p(z) − log p(x | z),   z = z(x)              the posterior is one code: the bound of the VQ-VAE
    −log p(x) ≤ E_q[log q(z | x) − log p(z) − log p(x | z)]       it is stochastic (gumbel): minus the ELBO
    −log p(x) ≤ E −log 1/S Σ_s p(z_s) p(x | z_s) / q(z_s | x)     tighter, with S draws (Burda et al. 2016,
                                                                          https://arxiv.org/abs/1509.00519, eq. 8)

Both sides of the first are lengths: an arithmetic coder needs the right one for z and then x (`pipeline/compress.py`
has one), so no model can make it too small. The rate is given for three priors: uniform, the frequencies of the train
split (independent codes), and the learned one. The learned prior is given the class, and ln of the number of classes
is added for it, so the sum bounds −log p(x) as the others do. Bits per dimension are nats divided by ln 2 · C · H · W.

Shapes: images (B, C, H, W) uint8; labels (B,), as the prior's condition has them; nats (B,) float64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.common.data.pixels import to_float
from smalti.common.errors import UserError
from smalti.pipeline.image_pipeline import ImagePipeline
from smalti.prior.base import Scores
from smalti.prior.baselines import Marginal, uniform_nll
from smalti.tokenizer.base import LikelihoodTokenizer

PRIORS = ("uniform", "independent", "learned")


class Nats(NamedTuple):
    """The nats of B images: of their pixels given the codes, and of their codes by each prior."""

    distortion: Tensor  # (B,) −log p(x | z)
    uniform: Tensor  # (B,) T ln K
    independent: Tensor  # (B,)
    learned: Tensor  # (B,) −log p(z | label) − log p(label)


def scoring(pipeline: ImagePipeline) -> Scores:
    """Return the pipeline's prior. Raises `UserError` if it does not say how likely codes are."""
    if not isinstance(pipeline.prior, Scores) or not pipeline.prior.config.layout.discrete:
        kind = pipeline.prior.config.architecture.name()
        raise UserError(
            f"an image costs bits by the probability of its codes, and a prior of kind {kind} does not say it"
        )
    return pipeline.prior


@torch.inference_mode()
def code_nats(pipeline: ImagePipeline, marginal: Marginal, codes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the nats of codes (B, T) by each prior, (B,) float64 on the CPU."""
    c, told = pipeline.prior.config, pipeline.told_to_prior(labels.to(pipeline.device))
    condition_nats = pipeline.condition.nats(labels)
    learned = -scoring(pipeline).log_prob(codes.to(pipeline.device), told).double().cpu() + condition_nats.cpu()
    uniform = torch.full((len(codes),), c.layout.length * uniform_nll(c.layout.codebook_size), dtype=torch.float64)
    return {"uniform": uniform, "independent": marginal.nll(codes.cpu()), "learned": learned}


def likely(pipeline: ImagePipeline) -> LikelihoodTokenizer:
    """Return the pipeline's tokenizer. Raises `UserError` if its decoder does not say p(x | z)."""
    if not isinstance(pipeline.tokenizer, LikelihoodTokenizer):
        raise UserError(
            f"images cost bits by p(x | z), which a tokenizer of kind {pipeline.tokenizer.config.name()} does not say"
        )
    return pipeline.tokenizer


@torch.inference_mode()
def image_nats(pipeline: ImagePipeline, marginal: Marginal, images: Tensor, labels: Tensor) -> Nats:
    """Return the nats of images with the codes that they are encoded to."""
    tokenizer, pixels = likely(pipeline), to_float(images.to(pipeline.device))
    codes = tokenizer.encode(pixels, labels)
    output = tokenizer.output(codes, labels)
    distortion = tokenizer.likelihood.nll(output.double(), pixels.double()).cpu()
    return Nats(distortion, **code_nats(pipeline, marginal, codes, labels))


class Bounds(NamedTuple):
    """Two bounds on the nats of B images, for each of `PRIORS`."""

    elbo: dict[str, Tensor]  # (B,) minus the ELBO, in expectation over the draws
    importance: dict[str, Tensor]  # (B,) the importance-weighted bound of all draws, of exact priors alone


@torch.inference_mode()
def stochastic_bounds(
    pipeline: ImagePipeline,
    marginal: Marginal,
    images: Tensor,
    labels: Tensor,
    samples: int,
    generator: torch.Generator,
) -> Bounds:
    """Return the bounds of images by `samples` draws from a stochastic posterior; `generator` is on the CPU.

    Of a learned prior that gives a bound there is the first alone: that bound is estimated, and the mean of exp of an
    estimate is too large.

    Raises:
        ValueError: the tokenizer's posterior is a single code.
    """
    tokenizer, pixels = likely(pipeline), to_float(images.to(pipeline.device))
    log_q = tokenizer.log_posterior(pixels)  # (B, T, K)
    if log_q is None:
        raise ValueError("this tokenizer's posterior is a single code, of which image_nats gives the bound")
    log_q = log_q.double()
    weights: dict[str, list[Tensor]] = {name: [] for name in PRIORS}
    for _ in range(samples):
        race = torch.empty(log_q.shape, dtype=torch.float64).exponential_(generator=generator).log().to(log_q.device)
        codes = (log_q - race).argmax(-1)  # (B, T): the exponential race draws from q
        chosen = log_q.gather(2, codes[..., None]).sum((1, 2)).cpu()
        output = tokenizer.output(codes, labels)
        distortion = tokenizer.likelihood.nll(output.double(), pixels.double()).cpu()
        for name, rate in code_nats(pipeline, marginal, codes, labels).items():
            weights[name].append(-rate - distortion - chosen)
    log_w = {name: torch.stack(each) for name, each in weights.items()}  # (S, B)
    exact = [name for name in PRIORS if name != "learned" or scoring(pipeline).exact]
    return Bounds(
        {name: -each.mean(0) for name, each in log_w.items()},
        {name: math.log(samples) - log_w[name].logsumexp(0) for name in exact},
    )


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Return the nats of an image in bits per dimension."""
    return nats / (math.log(2) * dimensions)
