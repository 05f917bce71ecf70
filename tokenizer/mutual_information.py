"""The mutual information of z and its image under q, by the posteriors of all images of a split.

    q(z) = 1/N Σ_n q(z | x_n)
    I(x; z) = E[log q(z | x) − log q(z)]  ≤  ln N
    KL(q(z) || p(z)) = E[log q(z) − log p(z)]          and the rate, KL(q(z | x) || p(z)) of the images, is their sum

Hoffman and Johnson (2016), "ELBO surgery", http://approximateinference.org/accepted/HoffmanJohnson2016.pdf. I is that
between z and which of the N images it was. It says no more than ln N of it: of images of which there are more, it is a
lower bound, and near ln N it says of them nothing else than that. All terms are means over the same draws, one for each
image, so that they add up; a rate in closed form differs from their sum by the error of the draws.

Shapes: N images of T numbers; z (M, T); log q (M,) float64 in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.tokenizer.posterior.normal import standard_log_prob
from smalti.tokenizer.posterior.of_images import ImagePosteriors

MOST_PAIRED = 2**32  # numbers of encoder output over all pairs of images: a quarter of a minute on one core
AT_ONCE = 2**23  # of them at once
INFORMATION = ("mutual_information", "mutual_information_cap", "marginal_kl")


class Surgery(NamedTuple):
    """The log-densities of M draws, whose means are the parts of the rate."""

    log_q: Tensor  # (M,) log q(z | x) of the image it was drawn for
    log_aggregated: Tensor  # (M,) log q(z)
    log_p: Tensor  # (M,) log N(z; 0, I)

    def figures(self, images: int) -> dict[str, float]:
        """Return the parts of the rate in nats, and the most that the first can be of so many images."""
        said, marginal = self.log_q - self.log_aggregated, self.log_aggregated - self.log_p
        return dict(zip(INFORMATION, (said.mean().item(), math.log(images), marginal.mean().item()), strict=True))


def paired_images(numbers: int) -> int:
    """Return how many images are compared in pairs at most, of so many numbers of encoder output each."""
    return max(1, math.isqrt(MOST_PAIRED // numbers))


@torch.no_grad()
def surgery(posteriors: ImagePosteriors, z: Tensor, of: Tensor) -> Surgery:
    """Return the log-densities of draws z (M, T) from the posteriors of the images `of` (M,), some at a time."""
    parts = []
    for rows in torch.arange(len(z), device=z.device).split(max(1, AT_ONCE // posteriors.h.numel())):
        each = posteriors.log_prob(z[rows, None]).double()  # (m, N)
        own = each.gather(1, of[rows, None])[:, 0]  # of the sum's own terms, so that rounding lifts nothing above ln N
        aggregated = each.logsumexp(1) - math.log(each.shape[1])
        parts.append(Surgery(own, aggregated, standard_log_prob(z[rows].double())))
    return Surgery(*map(torch.cat, zip(*parts, strict=True)))
