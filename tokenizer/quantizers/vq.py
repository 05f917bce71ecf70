"""`vq`: nearest neighbour in a codebook that learns by the codebook loss.

    L = L_rec + |sg[z_e] − e|² + β |z_e − sg[e]|²        van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3

the decoder's gradient reaching z_e straight through, or by rotation. Low-dimensional, l2-normalised codes: Yu et al.
(2021), https://arxiv.org/abs/2110.04627, sec. 3.2. This is the lecture's K-means with an encoder before it: the codebook
loss is the M step by gradient, `nearest` the E step.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from tokenizer.kmeans import kmeans
from tokenizer.nearest import nearest_grid
from tokenizer.quantizers.base import Quantized, Quantizer, fp32
from tokenizer.quantizers.config import TableConfig
from tokenizer.quantizers.estimators import ESTIMATORS
from tokenizer.quantizers.losses import codebook_and_commitment

ITERATIONS = 10  # of the K-means that sets the first vectors


class VectorQuantizer(Quantizer):
    """The codebook is a parameter (K, D)."""

    def __init__(self, config: TableConfig):
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))

    @property
    def vectors(self) -> Tensor:
        """(K, D) fp32, as the decoder sees them."""
        return F.normalize(fp32(self.codebook), dim=1) if self.config.normalize else fp32(self.codebook)

    def prepare(self, z_e: Tensor) -> Tensor:
        return F.normalize(z_e, dim=1) if self.config.normalize else z_e

    def quantize(self, z_e: Tensor) -> Quantized:
        indices = self.nearest(z_e)
        e = self.lookup(indices)
        codebook_loss, commitment_loss = codebook_and_commitment(z_e, e)
        return Quantized(
            z_q=ESTIMATORS[self.config.gradient](z_e, e),
            indices=indices,
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss,
            regularizer=z_e.new_zeros(()),
            z_e=z_e,
        )

    def nearest(self, z_e: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w)."""
        return nearest_grid(z_e, self.vectors)

    def assignments(self, quantized: Quantized) -> Tensor:
        """The codes (B, h, w) that evaluation would choose where training chose `quantized.indices`."""
        return quantized.indices

    def lookup(self, indices: Tensor) -> Tensor:
        b, h, w = indices.shape
        columns = self.vectors.T.contiguous().index_select(1, indices.flatten())  # half an embedding's time: no transpose of N
        return rearrange(columns, "d (b h w) -> b d h w", b=b, h=h, w=w)

    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        K = self.config.codebook_size
        spherical = self.config.normalize
        means = kmeans(vectors, K, iterations=ITERATIONS, generator=generator, spherical=spherical)
        self.place(torch.arange(K, device=means.device), means)

    @torch.no_grad()
    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (R, D) at the codebook's `rows` (R,)."""
        self.codebook[rows] = vectors.to(self.codebook.dtype)

    def tables(self) -> tuple[Quantizer, ...]:
        return (self,)
