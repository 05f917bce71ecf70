"""K-means of patches: a code is the mean nearest to a patch.

Shapes: as of `tokenizer/patches/model.py`; codebook (K, C · p · p).
"""

import torch
from torch import Generator, Tensor

from smalti.tokenizer.kmeans import clustering
from smalti.tokenizer.kmeans.config import KMeansConfig
from smalti.tokenizer.patches.model import PatchTokenizer


@KMeansConfig.register
class KMeansTokenizer(PatchTokenizer):
    """The K-means tokenizer, which `tokenizer/cluster.py` fits: a code decodes to the mean nearest to a patch."""

    objective = "mean squared error"
    config: KMeansConfig
    codebook: Tensor  # (K, C · patch · patch)

    def __init__(self, config: KMeansConfig):
        super().__init__(config)
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.code_dim))

    @property
    def means(self) -> Tensor:
        return self.codebook

    def codes_of(self, patches: Tensor) -> Tensor:
        return clustering.e_step(patches, self.codebook)

    def begin(self, sample: Tensor, generator: Generator) -> None:
        self.codebook.copy_(clustering.plus_plus(sample, self.config.codebook_size, generator))

    def e_step(self, patches: Tensor) -> tuple[Tensor, ...]:
        """Return counts (K,), sums (K, D), and squared distances and numbers (2,) of patches (N, D)."""
        indices = self.codes_of(patches)
        counts, sums = clustering.assigned(patches, indices, self.config.codebook_size)
        squared = (patches - self.codebook[indices]).square().sum()
        return counts, sums, torch.stack([squared, squared.new_tensor(patches.numel())])

    def m_step(self, sums: tuple[Tensor, ...], sample: Tensor) -> dict[str, float]:
        counts, moved, error = sums
        self.codebook.copy_(clustering.m_step(counts, moved, self.codebook, sample))
        squared = (error[0] / error[1]).item()
        self.fit_likelihood(squared)
        return {"objective": squared, "empty": int((counts == 0).sum())}
