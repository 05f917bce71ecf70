"""`iwae`: the importance-weighted bound, which rises to log p(x) with the number of draws.

    −log p(x) ≤ −E log 1/K Σ_k p(x, z_k) / q(z_k | x)

Burda et al. (2016), https://arxiv.org/abs/1509.00519, eq. 8.
"""

import math

from torch import Tensor

from smalti.tokenizer.criterion.objective.base import Evidence, Objective
from smalti.tokenizer.criterion.objective.config import IWAEConfig


@IWAEConfig.register
class IWAE(Objective):
    """−log 1/K Σ_k p(x, z_k) / q(z_k | x)."""

    def __init__(self, config: IWAEConfig):
        pass

    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        return {"importance_weighted_loss": importance_weighted_nll(evidence.log_weights).mean()}


def importance_weighted_nll(log_weights: Tensor) -> Tensor:
    """Return −log 1/K Σ_k w_k of each image, (B,), of log w (K, B)."""
    return math.log(len(log_weights)) - log_weights.logsumexp(0)
