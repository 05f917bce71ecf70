"""`simvq`: a frozen codebook C under one learned linear map W; the codes are C Wᵀ.

Zhu et al. (2024), https://arxiv.org/abs/2411.02038, sec. 4. In a plain codebook only the chosen vectors get a gradient
and the others are left behind; here a step that moves W moves them all. W starts as the identity and C as K-means of
encoder outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.bottleneck.config import SimVQConfig
from smalti.tokenizer.bottleneck.vq import VectorQuantizer


@SimVQConfig.register
class SimVectorQuantizer(VectorQuantizer):
    """The SimVQ quantizer; its codebook (K, D) is a buffer, its map (D, D) a parameter."""

    def __init__(self, config: SimVQConfig):
        super().__init__(config)
        codebook = self.codebook.detach()
        del self.codebook
        self.register_buffer("codebook", codebook)
        self.map = nn.Parameter(torch.eye(config.code_dim))

    @property
    def vectors(self) -> Tensor:
        mapped = fp32(self.codebook) @ fp32(self.map).T
        return F.normalize(mapped, dim=1) if self.config.normalize else mapped

    @torch.no_grad()
    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put at the codebook's `rows` the vectors that the map turns into `vectors`."""
        inverse = torch.linalg.pinv(fp32(self.map).cpu()).to(self.map.device)  # not every accelerator has one
        self.codebook[rows] = (fp32(vectors) @ inverse.T).to(self.codebook.dtype)
