"""The contract of every quantizer, and what it returns.

A quantizer knows places and no grid: its caller decides whether these are rows and columns, moments or both.
Vectors lie channel first, as convolutions leave them: transposing them would cost as much as the search in a small
codebook.

Shapes, for B samples of P places, D channels, K values a code and Q codes a place:
    z_e      (B, D, P)  encoder output
    z_q      (B, D, P)  what the decoder reads instead
    indices  (B, P), or (B, P, Q) where a place has Q > 1 codes; int64 in [0, K)
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from smalti.common.precision import fp32
from smalti.tokenizer.bottleneck.config import BottleneckConfig, TableConfig


class Quantized(NamedTuple):
    """The output of every quantizer. A NamedTuple, which DDP, Accelerate and torch.compile see through."""

    z_q: Tensor  # (B, D, P) fp32; how its gradient reaches z_e is the quantizer's estimator
    indices: Tensor  # (B, P) or (B, P, Q)
    codebook_loss: Tensor  # () mean of (sg[z_e] − e)², moves the codebook to the encoder; 0 where there is none to move
    commitment_loss: Tensor  # () mean of (z_e − sg[e])², moves the encoder to the codes; not yet weighted by β
    regularizer: Tensor  # () what else the quantizer asks of the loss, weighted: entropies of lfq, KL of gumbel; or 0
    z_e: Tensor  # (B, D, P) what was quantized, fp32
    stages: tuple["Quantized", ...] = ()  # of `residual`: what each depth returned


class Table(Protocol):
    """A quantizer with a table of vectors, whose dead codes need revival."""

    codebook: Tensor  # (K, D), a parameter, or a buffer where no gradient moves it

    @property
    def config(self) -> TableConfig:
        """Return the settings, with the sizes of the table."""

    @property
    def vectors(self) -> Tensor:
        """Return the vectors (K, D) fp32, as the decoder sees them."""

    def assignments(self, quantized: Quantized) -> Tensor:
        """Return the codes (B, P) that evaluation would choose where training chose `quantized.indices`."""

    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (R, D) at the codebook's `rows` (R,)."""


class Quantizer(nn.Module, ABC):
    """A map from z_e to codes and back. Distances and losses are fp32 for any input type, under autocast too."""

    spacing = 1.0  # how much finer than the one before the next depth of a residual stack is

    def forward(self, z_e: Tensor) -> Quantized:
        with torch.autocast(z_e.device.type, enabled=False):  # distances in bf16 can pick the wrong neighbour
            quantized = self.quantize(self.prepare(fp32(z_e)))
        assert quantized.indices.dtype == torch.int64, f"indices must be int64, got {quantized.indices.dtype}"
        return quantized

    def prepare(self, z_e: Tensor) -> Tensor:
        """Return z_e moved to where the codes are: onto the sphere, into bounds, or as it is."""
        return z_e

    @abstractmethod
    def quantize(self, z_e: Tensor) -> Quantized:
        """Return the codes of prepared z_e (B, D, P), fp32."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Return z_q (B, D, P), which the decoder reads, of indices."""

    def vectors_at(self, depth: int, codes: Tensor) -> Tensor:
        """Return the vectors (N, D) that codes (N,) of a depth add to z_q."""
        return self.lookup(codes[:, None])[:, :, 0]

    def initialize(self, vectors: Tensor, generator: Generator) -> None:
        """Fit the codebook, where there is one, to prepared encoder outputs (N, D), N >= K."""

    def tables(self) -> tuple[Table, ...]:
        """Return the quantizers inside that have a table of vectors; see `tokenizer/codebooks/upkeep.py`."""
        return ()

    def anneal(self, progress: float) -> None:
        """Set the values that change over training, as a function of the share of steps done."""


def build_quantizer(config: BottleneckConfig) -> Quantizer:
    """Return the quantizer of a config, its weights drawn at random."""
    quantizer: Quantizer = config.builds(config)
    return quantizer
