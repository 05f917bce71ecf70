"""What every quantizer is and returns.

Shapes, for B images on an h x w grid, D channels, K values a code and Q codes a place:
    z_e      (B, D, h, w)  encoder output
    z_q      (B, D, h, w)  what the decoder reads instead
    indices  (B, h, w), or (B, h, w, Q) where a place has Q > 1 codes; int64 in [0, K)
"""

from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from smalti.tokenizer.quantizers.config import TableConfig


class Quantized(NamedTuple):
    """What every quantizer returns. A NamedTuple, which DDP, Accelerate and torch.compile see through."""

    z_q: Tensor  # (B, D, h, w) fp32; how its gradient reaches z_e is the quantizer's estimator
    indices: Tensor  # (B, h, w) or (B, h, w, Q)
    codebook_loss: Tensor  # () mean of (sg[z_e] − e)², moves the codebook to the encoder; 0 where there is none to move
    commitment_loss: Tensor  # () mean of (z_e − sg[e])², moves the encoder to the codes; not yet weighted by β
    regularizer: Tensor  # () what else the quantizer asks of the loss, weighted: entropies of lfq, KL of gumbel; or 0
    z_e: Tensor  # (B, D, h, w) what was quantized, fp32
    stages: tuple["Quantized", ...] = ()  # of `residual`: what each depth returned


def fp32(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 where it is: what a half-precision model's numbers are computed in."""
    return x if x.dtype == torch.float64 else x.float()


class Table(Protocol):
    """A quantizer with a table of vectors, which needs keeping alive."""

    codebook: Tensor  # (K, D), a parameter, or a buffer where no gradient moves it

    @property
    def config(self) -> TableConfig:
        """Its sizes."""

    @property
    def vectors(self) -> Tensor:
        """(K, D) fp32, as the decoder sees them."""

    def assignments(self, quantized: Quantized) -> Tensor:
        """Return the codes (B, h, w) that evaluation would choose where training chose `quantized.indices`."""

    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (R, D) at the codebook's `rows` (R,)."""


class Quantizer(nn.Module):
    """z_e to codes and back. Distances and losses are fp32 whatever comes, under autocast too."""

    spacing = 1.0  # how much finer than the one before the next depth of a residual stack is
    commits = True  # whether the encoder is asked to stay near the codes

    def forward(self, z_e: Tensor) -> Quantized:
        with torch.autocast(z_e.device.type, enabled=False):  # distances in bf16 can pick the wrong neighbour
            return self.quantize(self.prepare(fp32(z_e)))

    def prepare(self, z_e: Tensor) -> Tensor:
        """z_e brought to the region where the codes are: onto the sphere, into bounds, or as it is."""
        return z_e

    def quantize(self, z_e: Tensor) -> Quantized:
        """The codes of prepared z_e (B, D, h, w), fp32."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """indices -> z_q (B, D, h, w), the map the decoder reads."""
        raise NotImplementedError

    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        """Fit the codebook, where there is one, to prepared encoder outputs (N, D), N >= K."""

    def tables(self) -> tuple[Table, ...]:
        """The quantizers inside that have a table of vectors; see `tokenizer.upkeep`."""
        return ()

    def anneal(self, progress: float) -> None:
        """Set what changes over training, as a function of the share of steps done."""
