"""`elbo`: the evidence lower bound, with the weight of β-VAE, KL warm-up and free bits.

    −log p(x) ≤ −ELBO(x) = E_q[−log p(x | z)] + KL(q(z | x) || p(z))

Kingma and Welling (2014), https://arxiv.org/abs/1312.6114; β-VAE: Higgins et al. (2017); warm-up: Sønderby et al.
(2016), https://arxiv.org/abs/1602.02282; free bits: Kingma et al. (2016), https://arxiv.org/abs/1606.04934, eq. 15.
The KL is summed over latents and averaged over images, as the reconstruction is over pixels and images: a mean over
latents would be another β for every size of image.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from smalti.tokenizer.criterion.objective.base import Evidence, Objective
from smalti.tokenizer.criterion.objective.config import ObjectiveConfig


class ELBOConfig(ObjectiveConfig):
    """The evidence lower bound."""

    kind: Literal["elbo"] = "elbo"
    """the evidence lower bound; with kl_weight β-VAE"""
    kl_weight: float = Field(1.0, ge=0)
    """β on the KL; only at 1 is the loss a bound on −log p(x)"""
    kl_warmup: float = Field(0.0, ge=0, le=1)
    """share of the steps over which the KL's weight rises from 0, so that latents are used before they cost"""
    free_bits: float = Field(0.0, ge=0)
    """nats that are free of charge for each number of z, or for each place where the KL is no sum over numbers"""

    def weight(self, progress: float) -> float:
        """Return the KL's weight at a share of the steps."""
        return self.kl_weight * (min(1.0, progress / self.kl_warmup) if self.kl_warmup else 1.0)

    def scheduled(self, progress: float) -> dict[str, float]:
        return {"kl_weight": self.weight(progress)} if self.kl_warmup else {}


@ELBOConfig.register
class ELBO(Objective):
    """E_q[−log p(x | z)] + β KL(q(z | x) || p(z))."""

    def __init__(self, config: ELBOConfig):
        self.config = config

    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        kl = evidence.rate.mean(0).clamp_min(self.config.free_bits).sum()  # each part, over images; then all parts
        return {"reconstruction_loss": evidence.nll.mean(), "kl_loss": self.config.weight(progress) * kl}
