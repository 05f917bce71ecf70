"""`elbo`: the evidence lower bound, with the weight of β-VAE, KL warm-up and free bits.

    −log p(x) ≤ −ELBO(x) = E_q[−log p(x | z)] + KL(q(z | x) || p(z))

Kingma and Welling (2014), https://arxiv.org/abs/1312.6114; β-VAE: Higgins et al. (2017); warm-up: Sønderby et al.
(2016), https://arxiv.org/abs/1602.02282; free bits: Kingma et al. (2016), https://arxiv.org/abs/1606.04934, eq. 15.
The KL is summed over latents and averaged over images, as the reconstruction is over pixels and images: a mean over
latents would be another β for every size of image.
"""

from torch import Tensor

from smalti.tokenizer.criterion.objective.base import Evidence, Objective
from smalti.tokenizer.criterion.objective.config import ELBOConfig


@ELBOConfig.register
class ELBO(Objective):
    """E_q[−log p(x | z)] + β KL(q(z | x) || p(z))."""

    def __init__(self, config: ELBOConfig):
        self.config = config

    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        kl = evidence.rate.mean(0).clamp_min(self.config.free_bits).sum()  # each part, over images; then all parts
        return {"reconstruction_loss": evidence.nll.mean(), "kl_loss": self.config.weight(progress) * kl}
