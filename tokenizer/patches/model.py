"""The contract of a tokenizer of patches, which `tokenizer/cluster.py` fits: a code decodes to a mean.

Shapes: images (B, C, H, W) in [-1, 1], patches of p x p pixels, as vectors (N, D), D = C · p · p; indices (B, h, w);
means (K, D).
"""

import math
from abc import abstractmethod
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor

from smalti.tokenizer.base import LikelihoodTokenizer
from smalti.tokenizer.criterion.likelihood.config import GaussianConfig
from smalti.tokenizer.criterion.likelihood.gaussian import Gaussian
from smalti.tokenizer.criterion.likelihood.levels import HALF
from smalti.tokenizer.patches.config import PatchesConfig


class PatchTokenizer(LikelihoodTokenizer):
    """A tokenizer whose codes stand for patches. What a code decodes to has one variance for all pixels and codes."""

    objective: ClassVar[str]  # what EM lowers, in words of a curve
    config: PatchesConfig
    likelihood: Gaussian

    def __init__(self, config: PatchesConfig):
        super().__init__()
        self.config = config
        self.likelihood = Gaussian(GaussianConfig(), config.image_channels).requires_grad_(False)

    def for_fitting(self) -> Self:
        """Return this tokenizer in the precision that EM computes in; models are used and saved in fp32."""
        return self

    @property
    @abstractmethod
    def means(self) -> Tensor:
        """Return what codes decode to, (K, D) fp32."""

    @abstractmethod
    def codes_of(self, patches: Tensor) -> Tensor:
        """Return the code of each of patches (N, D), (N,)."""

    @abstractmethod
    def begin(self, sample: Tensor, generator: Generator) -> None:
        """Set the parameters that EM begins with, from a sample of patches (N, D)."""

    @abstractmethod
    def e_step(self, patches: Tensor) -> tuple[Tensor, ...]:
        """Return sums over patches (N, D) that the M step needs; those of parts of a set add up."""

    @abstractmethod
    def m_step(self, sums: tuple[Tensor, ...], sample: Tensor) -> dict[str, float]:
        """Set the parameters that are best for the sums, and return figures of the E step, `objective` first."""

    def warnings(self) -> list[str]:
        """Return what the user should know of the fit."""
        return []

    @torch.no_grad()
    def fit_likelihood(self, squared_error: float) -> None:
        """Set the variance that all means share to the mean squared error of a pixel, its M step."""
        self.likelihood.log_scale.fill_(max(0.5 * math.log(max(squared_error, 1e-12)), math.log(HALF)))

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches of images as vectors: (B, C, H, W) -> (B · h · w, C · patch · patch)."""
        p = self.config.patch
        return rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=p, q=p)

    def _encode(self, images: Tensor, condition: Tensor | None) -> Tensor:
        return self.codes_of(self.patches(images)).view(len(images), -1)

    def _output(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        (indices,) = self.config.layout.split(latents)
        return self.draw(indices)

    def code_tables(self) -> list[Tensor]:
        """Return the means, (K, D)."""
        return [self.means]

    def code_vectors(self, depth: int, codes: Tensor) -> Tensor:
        """Return the means of codes (N,), (N, D)."""
        return self.means[codes.to(self.means.device)]

    def code_pictures(self, counts: Tensor, depth: int, codes: Tensor) -> Tensor:
        """Return the means of codes (N,) as patches, (N, C, p, p)."""
        return self.likelihood.mean(self.draw(codes.to(self.means.device)[:, None, None]))

    def draw(self, indices: Tensor) -> Tensor:
        """Return the means of a grid of any size, side by side: indices (B, h, w) -> (B, C, h · patch, w · patch)."""
        p = self.config.patch
        return rearrange(F.embedding(indices, self.means), "b h w (c p q) -> b c (h p) (w q)", p=p, q=p)
