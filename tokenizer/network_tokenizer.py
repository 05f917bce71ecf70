"""A tokenizer of an encoder, a quantizer and a decoder: a code stands for a vector, which is decoded amid others.

    NetworkTokenizer    any layout of codes: pictures of single codes, amid the mean of all others
    GridTokenizer       codes of one grid, each of which stands for a vector at its place

Shapes: images (B, C, H, W); z_e and z_q (B, D, h, w); indices (B, h, w), or (B, h, w, Q) where a place has Q > 1 codes;
counts (R, K), how often each code of each of R codebooks was used: a row a depth of each grid.
"""

from abc import abstractmethod

import torch
from einops import rearrange
from torch import Tensor

from smalti.common.layout import Layout
from smalti.common.progress import passing_bar
from smalti.tokenizer.base import LikelihoodTokenizer
from smalti.tokenizer.bottleneck.base import Quantizer
from smalti.tokenizer.nearest import nearest_indices

AROUND = 5  # places a side of the grid in whose middle a code is drawn
BATCH = 256  # codes drawn at once
LOOKED_UP = 2**16  # vectors at once
MOST_CONTRAST = 8  # by which changes of a mean patch are raised at most: of 8 bits, three


class NetworkTokenizer(LikelihoodTokenizer):
    """A tokenizer with a network: vectors from codes, and pictures of single codes."""

    quantizer: Quantizer

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:
        """Return z_e (B, D, h, w) of images, before it is prepared and quantized."""

    @abstractmethod
    def draw(self, z_q: Tensor) -> Tensor:
        """Return what `likelihood` reads, (B, N, H, W), of z_q (B, D, h, w) on a grid of any size."""

    # ----------------------------------------------------------------------------------------------------- single codes

    def code_tables(self) -> list[Tensor]:
        """Return the vectors (K, D) that are searched in each codebook; an empty list where codes are digits."""
        return [table.vectors for table in self.quantizer.tables()]

    @torch.no_grad()
    def code_vectors(self, depth: int, codes: Tensor) -> Tensor:
        """Return the vectors (N, D) that codes (N,) of a codebook add to z_q."""
        codes = codes.to(next(self.parameters()).device)
        return torch.cat([self.quantizer.vectors_at(depth, some) for some in codes.split(LOOKED_UP)])

    @torch.no_grad()
    def code_pictures(self, counts: Tensor, depth: int, codes: Tensor) -> Tensor:
        """Return the patches (N, C, p, p) in [-1, 1] that codes (N,) of a codebook draw amid the mean of those in use.

        Of later codebooks they are the change of the mean patch, with its contrast raised.
        """
        means = [self._mean_vector(*row) for row in enumerate(counts)]
        found = []
        with passing_bar(len(codes), "draw codes", unit="code") as bar:
            for some in codes.split(BATCH):
                found.append(self._drawn(means, depth, self.code_vectors(depth, some)))
                bar.update(len(some))
        drawn = torch.cat(found)
        if depth == 0:
            return drawn
        change = drawn - self._drawn(means, depth, means[depth][None])
        return change / change.abs().amax(dim=(1, 2, 3)).quantile(0.9).clamp_min(1 / MOST_CONTRAST)

    @abstractmethod
    def _drawn(self, means: list[Tensor], row: int, vectors: Tensor) -> Tensor:
        """Return the patches (N, C, p, p) that vectors (N, D) of a codebook draw at one place.

        Args:
            means: of each codebook, the vector (D,) that stands for its codes at all other places.
        """

    def _mean_vector(self, depth: int, counts: Tensor) -> Tensor:
        """Return the mean vector (D,) that a codebook adds to z_q, where codes are used counts (K,) times."""
        counts = counts.to(next(self.parameters()).device)
        used = counts.nonzero()[:, 0]
        one = used[:1] if len(used) else torch.zeros(1, dtype=torch.int64)
        total = torch.zeros_like(self.code_vectors(depth, one)[0])
        for some in used.split(LOOKED_UP):
            total += (self.code_vectors(depth, some) * counts[some, None]).sum(0)
        return total / counts.sum().clamp_min(1)


class GridTokenizer(NetworkTokenizer):
    """A tokenizer with a network and one grid of codes, whose vectors lie on the grid where the codes do."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Return z_q (B, D, h, w) of indices on a grid of any size, (B, h, w) or (B, h, w, Q)."""
        z_q = self.quantizer.lookup(indices.flatten(1, 2))
        places = indices.shape[1] * indices.shape[2]
        assert z_q.shape[2:] == (places,), f"lookup must return (B, D, {places}), got {tuple(z_q.shape)}"
        return z_q.unflatten(2, indices.shape[1:3])

    def _output(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        (indices,) = self.config.layout.split(latents)
        return self.draw(self.lookup(indices))

    # --------------------------------------------------------------------------------------------- the vectors of codes

    @property
    def vector_layout(self) -> Layout:
        assert self.config.layout.rectangle is not None  # a network's codes lie in rows and columns
        first = torch.zeros(1, dtype=torch.int64)
        return Layout.of(*self.config.layout.rectangle, depth=self.code_vectors(0, first).shape[1])

    @torch.no_grad()
    def embed(self, codes: Tensor) -> Tensor:
        """Return z_q of codes (B, T), place after place, (B, P D) float32."""
        self.check(codes)
        (indices,) = self.config.layout.split(codes)
        return rearrange(self.lookup(indices), "b d h w -> b (h w d)").float()

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the codes (B, T) nearest to vectors (B, P D), at each depth those nearest to what the ones before
        leave."""
        (grid,) = self.config.layout.grids
        rest = vectors.float().reshape(len(vectors) * grid.places, -1)  # (B P, D)
        found = []
        for depth in range(grid.depth):
            table = self.code_vectors(depth, torch.arange(grid.codebook_size))
            found.append(nearest_indices(rest, table))
            rest = rest - table[found[-1]]
        return torch.stack(found, 1).view(len(vectors), -1)

    # ------------------------------------------------------------------------------------------------------ one code

    def _drawn(self, means: list[Tensor], row: int, vectors: Tensor) -> Tensor:
        """Return the patches (N, C, p, p) that vectors (N, D) draw in the middle of places of the mean of all codes."""
        assert self.config.layout.rectangle is not None  # a network's codes lie in rows and columns
        p, middle = self.config.image_size[0] // self.config.layout.rectangle[0], AROUND // 2
        seen = slice(middle * p, (middle + 1) * p)
        around = sum(means, torch.zeros_like(means[0]))
        z_q = around[None, :, None, None].repeat(len(vectors), 1, AROUND, AROUND)
        z_q[:, :, middle, middle] += vectors - means[row]
        return self.likelihood.mean(self.draw(z_q))[..., seen, seen]
