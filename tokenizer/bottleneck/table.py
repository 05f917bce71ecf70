"""The base of quantizers with a table of vectors: the nearest code, and the K-means start of the codebook.

Shapes: codebook and vectors (K, D); z_e (B, D, P), indices (B, P).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.bottleneck.base import Quantized, Quantizer
from smalti.tokenizer.bottleneck.config import TableConfig
from smalti.tokenizer.kmeans.clustering import kmeans
from smalti.tokenizer.nearest import nearest_places

ITERATIONS = 10  # of the K-means that sets the first vectors


class TableQuantizer(Quantizer):
    """A quantizer with a codebook (K, D), which is a parameter, or a buffer where no gradient moves it."""

    config: TableConfig
    codebook: Tensor

    def __init__(self, config: TableConfig):
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))

    @property
    def vectors(self) -> Tensor:
        """Return the vectors (K, D) fp32, as the decoder sees them."""
        return F.normalize(fp32(self.codebook), dim=1) if self.config.normalize else fp32(self.codebook)

    def prepare(self, z_e: Tensor) -> Tensor:
        return F.normalize(z_e, dim=1) if self.config.normalize else z_e

    def nearest(self, z_e: Tensor) -> Tensor:
        """Return the nearest code of each place: (B, D, P) -> (B, P)."""
        return nearest_places(z_e, self.vectors)

    def assignments(self, quantized: Quantized) -> Tensor:
        """Return the codes (B, P) that evaluation would choose where training chose `quantized.indices`."""
        return quantized.indices

    def lookup(self, indices: Tensor) -> Tensor:
        b, p = indices.shape
        # Half an embedding's time, since N vectors need no transposing.
        columns = self.vectors.T.contiguous().index_select(1, indices.flatten())
        return rearrange(columns, "d (b p) -> b d p", b=b, p=p)

    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        K = self.config.codebook_size
        spherical = self.config.normalize
        means = kmeans(vectors, K, iterations=ITERATIONS, generator=generator, spherical=spherical)
        self.place(torch.arange(K, device=means.device), means)

    @torch.no_grad()
    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (R, D) at the codebook's `rows` (R,)."""
        self.codebook[rows] = vectors.to(self.codebook.dtype)

    def tables(self) -> "tuple[TableQuantizer, ...]":
        return (self,)
