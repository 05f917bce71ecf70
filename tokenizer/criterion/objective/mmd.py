"""`infovae` and `wae`: the aggregated posterior q(z) = E_x q(z | x) is brought to p(z) as a whole, by MMD.

    InfoVAE   E_q[−log p(x | z)] + (1 − α) KL(q(z | x) || p(z)) + (α + λ − 1) MMD²(q(z), p(z))
    WAE       E_q[−log p(x | z)] + λ MMD²(q(z), p(z))

Zhao et al. (2019), https://arxiv.org/abs/1706.02262, eq. 6; Tolstikhin et al. (2018),
https://arxiv.org/abs/1711.01558. The KL of the ELBO is the mutual information of x and z under q plus
KL(q(z) || p(z)). WAE leaves the first free and asks for the second alone; InfoVAE asks for the first at the weight
1 − α, and leaves it free at α = 1. Neither is a bound on log p(x).
"""

import torch
from torch import Tensor

from smalti.metrics.mmd import mmd_squared
from smalti.tokenizer.criterion.objective.base import Evidence, Objective
from smalti.tokenizer.criterion.objective.config import InfoVAEConfig, WAEConfig


@WAEConfig.register
class WAE(Objective):
    """E_q[−log p(x | z)] + λ MMD²(q(z), p(z))."""

    def __init__(self, config: WAEConfig):
        self.config = config

    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        mmd_loss = self.config.mmd_weight * distance_to_prior(evidence.z)
        return {"reconstruction_loss": evidence.nll.mean(), "mmd_loss": mmd_loss}


@InfoVAEConfig.register
class InfoVAE(Objective):
    """E_q[−log p(x | z)] + (1 − α) KL(q(z | x) || p(z)) + (α + λ − 1) MMD²(q(z), p(z))."""

    def __init__(self, config: InfoVAEConfig):
        self.config = config

    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        c = self.config
        return {
            "reconstruction_loss": evidence.nll.mean(),
            "kl_loss": c.kl_weight * evidence.rate.sum((1, 2)).mean(),
            "mmd_loss": c.mmd_weight * distance_to_prior(evidence.z),
        }


def distance_to_prior(z: Tensor) -> Tensor:
    """Return MMD² between a draw of each image, as vectors (B, P · D), and draws of N(0, I): the mean over the S draws
    of z (S, B, P, D). It is 0 of a single image, of which there is no pair."""
    vectors = z.flatten(2)
    if vectors.shape[1] < 2:
        return 0.0 * vectors.sum()
    return torch.stack([mmd_squared(draw, torch.randn_like(draw)) for draw in vectors]).mean()
