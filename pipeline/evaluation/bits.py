"""What an image costs: rate + distortion, the two terms of the ELBO, each image's and in nats.

    −log p(x) ≤ −log p(z) − log p(x | z),   z = z(x)              a posterior that is one code: the bound of the VQ-VAE
    −log p(x) ≤ E_q[log q(z | x) − log p(z) − log p(x | z)]       a stochastic one (gumbel): minus the ELBO
    −log p(x) ≤ E −log 1/S Σ_s p(z_s) p(x | z_s) / q(z_s | x)     of S draws, tighter (Burda et al. 2016,
                                                                          https://arxiv.org/abs/1509.00519, eq. 8)

Both sides of the first are lengths: the right one is what an arithmetic coder needs for z and then x
(`pipeline/compress.py` has one), so no model can make it too small. The rate is that of three priors: uniform, the
frequencies of the training split (independent codes), and the learned one. The learned prior is told the class, and the
class is then paid for, ln of how many there are: the sum bounds −log p(x) as the others do. In bits per dimension:
divided by ln 2 · C · H · W.

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
    """Of B images: what the pixels cost given the codes, and what the codes cost, by each prior."""

    distortion: Tensor  # (B,) −log p(x | z)
    uniform: Tensor  # (B,) T ln K
    independent: Tensor  # (B,)
    learned: Tensor  # (B,) −log p(z | label) − log p(label)


def scoring(pipeline: ImagePipeline) -> Scores:
    """Return the pipeline's prior. Raises `UserError` where it is one that does not say how likely codes are."""
    if not isinstance(pipeline.prior, Scores) or not pipeline.prior.config.layout.discrete:
        kind = pipeline.prior.config.architecture.name()
        raise UserError(
            f"an image costs bits by the probability of its codes, and a prior of kind {kind} does not say it"
        )
    return pipeline.prior


@torch.inference_mode()
def code_nats(pipeline: ImagePipeline, marginal: Marginal, codes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What codes (B, T) cost by each prior: (B,) float64 on the CPU."""
    c, device = pipeline.prior.config, pipeline.device
    told = c.condition.nats(labels)
    learned = -scoring(pipeline).log_prob(codes.to(device), labels.to(device)).double().cpu() + told.cpu()
    uniform = torch.full((len(codes),), c.layout.length * uniform_nll(c.layout.codebook_size), dtype=torch.float64)
    return {"uniform": uniform, "independent": marginal.nll(codes.cpu()), "learned": learned}


def likely(pipeline: ImagePipeline) -> LikelihoodTokenizer:
    """Return the pipeline's tokenizer. Raises `UserError` where it is one whose decoder does not say p(x | z)."""
    if not isinstance(pipeline.tokenizer, LikelihoodTokenizer):
        raise UserError(
            f"images cost bits by p(x | z), which a tokenizer of kind {pipeline.tokenizer.config.name()} does not say"
        )
    return pipeline.tokenizer


@torch.inference_mode()
def image_nats(pipeline: ImagePipeline, marginal: Marginal, images: Tensor, labels: Tensor) -> Nats:
    """What images cost with the codes they are encoded to."""
    tokenizer, pixels = likely(pipeline), to_float(images.to(pipeline.device))
    codes = tokenizer.encode(pixels)
    output = tokenizer.output(codes)
    distortion = tokenizer.likelihood.nll(output.double(), pixels.double()).cpu()
    return Nats(distortion, **code_nats(pipeline, marginal, codes, labels))


class Bounds(NamedTuple):
    """Of B images, for each of `PRIORS`."""

    elbo: dict[str, Tensor]  # (B,) minus the ELBO, in expectation over the draws
    importance: dict[str, Tensor]  # (B,) the bound of all draws together


@torch.inference_mode()
def stochastic_bounds(
    pipeline: ImagePipeline,
    marginal: Marginal,
    images: Tensor,
    labels: Tensor,
    samples: int,
    generator: torch.Generator,
) -> Bounds:
    """Bounds by `samples` draws from a stochastic posterior; `generator` is on the CPU.

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
        output = tokenizer.output(codes)
        distortion = tokenizer.likelihood.nll(output.double(), pixels.double()).cpu()
        for name, rate in code_nats(pipeline, marginal, codes, labels).items():
            weights[name].append(-rate - distortion - chosen)
    log_w = {name: torch.stack(each) for name, each in weights.items()}  # (S, B)
    return Bounds(
        {name: -each.mean(0) for name, each in log_w.items()},
        {name: math.log(samples) - each.logsumexp(0) for name, each in log_w.items()},
    )


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats of an image -> bits per dimension."""
    return nats / (math.log(2) * dimensions)
