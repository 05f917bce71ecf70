"""`reconstruction`: −log p(x | z) alone. An autoencoder's; of a Gaussian q it shows why the KL cannot be dropped."""

from torch import Tensor

from smalti.tokenizer.criterion.objective.base import Evidence, Objective
from smalti.tokenizer.criterion.objective.config import ReconstructionConfig


@ReconstructionConfig.register
class Reconstruction(Objective):
    """E_q[−log p(x | z)]."""

    def __init__(self, config: ReconstructionConfig):
        pass

    def terms(self, evidence: Evidence, progress: float) -> dict[str, Tensor]:
        return {"reconstruction_loss": evidence.nll.mean()}
