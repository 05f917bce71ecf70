"""The tokenizer without a network: a code is the mean nearest to a patch.

Shapes: images (B, C, H, W) in [-1, 1], patches of p x p pixels, indices (B, h, w), codebook (K, C · p · p).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from smalti.tokenizer.base import LikelihoodTokenizer
from smalti.tokenizer.criterion.likelihood.gaussian import Gaussian, GaussianConfig
from smalti.tokenizer.criterion.likelihood.levels import HALF
from smalti.tokenizer.kmeans.clustering import e_step
from smalti.tokenizer.kmeans.config import KMeansConfig


@KMeansConfig.register
class KMeansTokenizer(LikelihoodTokenizer):
    """The K-means tokenizer, which `tokenizer/cluster.py` fits: a code decodes to the mean nearest to a patch."""

    config: KMeansConfig
    likelihood: Gaussian
    codebook: Tensor  # (K, C · patch · patch)

    def __init__(self, config: KMeansConfig):
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.code_dim))
        self.likelihood = Gaussian(GaussianConfig(), config.image_channels).requires_grad_(False)

    @torch.no_grad()
    def fit_likelihood(self, squared_error: float) -> None:
        """Set the variance that all means share to the mean squared error of a pixel, its M step."""
        self.likelihood.log_scale.fill_(max(0.5 * math.log(max(squared_error, 1e-12)), math.log(HALF)))

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches of images as vectors: (B, C, H, W) -> (B · h · w, C · patch · patch)."""
        p = self.config.patch
        return rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=p, q=p)

    def _encode(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return e_step(self.patches(images), self.codebook).view(len(images), -1)

    def _output(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        (indices,) = self.config.layout.split(latents)
        return self.draw(indices)

    def code_tables(self) -> list[Tensor]:
        """Return the means, (K, D)."""
        return [self.codebook]

    def code_vectors(self, depth: int, codes: Tensor) -> Tensor:
        """Return the means of codes (N,), (N, D)."""
        return self.codebook[codes.to(self.codebook.device)]

    def code_pictures(self, counts: Tensor, depth: int, codes: Tensor) -> Tensor:
        """Return the means of codes (N,) as patches, (N, C, p, p)."""
        return self.likelihood.mean(self.draw(codes.to(self.codebook.device)[:, None, None]))

    def draw(self, indices: Tensor) -> Tensor:
        """Return the means of a grid of any size, side by side: indices (B, h, w) -> (B, C, h · patch, w · patch)."""
        p = self.config.patch
        return rearrange(F.embedding(indices, self.codebook), "b h w (c p q) -> b c (h p) (w q)", p=p, q=p)
