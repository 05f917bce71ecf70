"""Independent codes as a prior: p(z | class) = Π_t p_t(z_t | class), the frequencies of codes in the training rows.

Every count gets one more (Laplace), so that no code is impossible. It is the lecture's simplest prior that is fitted,
and what a prior saves beyond it is what it knows of how codes go together.

Shapes: G tables, one a class and the last one for none; R rows of each: T by place, else one for each depth of each
grid; counts (G, R, K) int64, log_p (G, R, K) float32.
"""

import math

import psutil
import torch
from torch import Tensor

from smalti.common.condition import Classes, Nothing
from smalti.common.errors import UserError
from smalti.prior.config import PriorConfig
from smalti.prior.simple.code_prior import CodePrior
from smalti.prior.simple.config import IndependentConfig

BYTES = 36  # of a frequency while it is counted: three numbers of int64, one of fp64, and fp32


@IndependentConfig.register
class IndependentPrior(CodePrior):
    """A table of code frequencies for each class, and one over all rows for samples without a class."""

    log_p: Tensor
    rows: Tensor  # (T,)

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        if not isinstance(config.condition, Classes | Nothing):
            raise UserError(
                f"model.kind independent counts the rows of each class, and samples are told of "
                f"{config.condition.name()} here: give --condition nothing"
            )
        K = config.layout.codebook_size
        self.vocabularies = (K,)  # in whole: its parts would not be independent
        self.register_buffer("log_p", torch.full(table_shape(config), -math.log(K)))
        self.register_buffer("rows", table_rows(config), persistent=False)

    @torch.no_grad()
    def take(self, counts: Tensor) -> None:
        """Take the counts (G, R, K) of each class and, in the last table, of the rows without one.

        The table for none is of all rows, and a class without rows has that table.
        """
        every = counts.sum(0, keepdim=True)
        absent = counts.sum((1, 2), keepdim=True) == 0
        smoothed = torch.cat([counts[:-1].where(~absent[:-1], every), every]).double() + 1
        self.log_p.copy_(smoothed.log() - smoothed.sum(-1, keepdim=True).log())

    def logits(self, condition: Tensor, t: int, g: int) -> Tensor:
        return self.log_p[condition, self.rows[t]]

    def log_prob_each(self, codes: Tensor, condition: Tensor) -> Tensor:
        return self.log_p[condition[:, None], self.rows, codes].double()


def table_shape(config: PriorConfig) -> tuple[int, int, int]:
    """Return (G, R, K)."""
    assert isinstance(config.architecture, IndependentConfig)  # the registry builds no other
    layout = config.layout
    rows = layout.length if config.architecture.by_place else layout.codebooks
    return config.condition.num_classes + 1, rows, layout.codebook_size


def table_rows(config: PriorConfig) -> Tensor:
    """Return the row of the tables that each code of a sample has, (T,)."""
    assert isinstance(config.architecture, IndependentConfig)
    layout = config.layout
    return torch.arange(layout.length) if config.architecture.by_place else layout.codebook_of()


def count(codes: Tensor, condition: Tensor, config: PriorConfig) -> Tensor:
    """Return how often each code (B, T) is at each place or depth, (G, R, K), of rows of each condition (B,)."""
    G, R, K = table_shape(config)
    where = (condition[:, None] * R + table_rows(config).to(codes.device)) * K + codes
    return torch.bincount(where.flatten(), minlength=G * R * K).view(G, R, K)


def check_table(config: PriorConfig) -> None:
    """Raise `UserError` where this machine's memory does not hold the tables."""
    G, R, K = table_shape(config)
    needed, memory = BYTES * G * R * K, psutil.virtual_memory().total
    if needed > memory:
        raise UserError(
            f"{G} tables of {R} x {K} code frequencies need {needed / 2**30:.0f} GiB, this machine has "
            f"{memory / 2**30:.0f}: take --model.by_place false, --condition nothing, or train a prior with "
            "prior/train.py"
        )
