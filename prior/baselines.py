"""The two priors of the lecture that need no training: uniform, and independent draws from the code frequencies.

Both are in nats per code, as the learned prior's NLL is. Codes (N, T), the Q codes of a place side by side.
"""

import math

import numpy as np
import torch
from torch import Tensor

from smalti.common.codes import TOGETHER, Rows
from smalti.common.layout import Layout


def uniform_nll(codebook_size: int) -> float:
    """Return ln K, the nats per code of a uniform prior."""
    return math.log(codebook_size)


class Marginal:
    """A prior of independent codes: their frequencies in the train split at each depth, every count plus one."""

    def __init__(self, train: Rows, codebook_size: int, code_depth: int = 1):
        counts = np.ones((code_depth, codebook_size))
        for start in range(0, len(train), TOGETHER):
            some = train[start : start + TOGETHER].reshape(-1, code_depth)
            counts += [np.bincount(seen, minlength=codebook_size) for seen in some.T]
        self.log_p = torch.from_numpy(np.log(counts / counts.sum(1, keepdims=True)))  # (Q, K) float64

    def nll(self, codes: Tensor) -> Tensor:
        """Return −log p of all codes of each image, (N,) float64, for codes (N, T)."""
        depths = len(self.log_p)
        each = [self.log_p[q][codes[:, q::depths].long()] for q in range(depths)]
        return -torch.stack([depth.sum(1) for depth in each]).sum(0)


def marginal_nll(train: Rows, held_out: Rows, layout: Layout) -> float:
    """Return the cross-entropy per code of held-out codes (N, T) under the train split's frequencies.

    On the train split itself this is the entropy, up to the smoothing.
    """
    codes = torch.from_numpy(np.asarray(held_out).astype(np.int64))
    return Marginal(train, layout.codebook_size, layout.depth).nll(codes).mean().item() / codes.shape[1]
