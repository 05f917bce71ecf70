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
    """A prior of independent codes: the frequencies of each codebook in the train split, every count plus one."""

    def __init__(self, train: Rows, layout: Layout):
        codebook_of = layout.codebook_of()
        self.columns = [codebook_of == codebook for codebook in range(layout.codebooks)]  # each (T,) bool
        counts = np.ones((layout.codebooks, layout.codebook_size))
        for start in range(0, len(train), TOGETHER):
            some = train[start : start + TOGETHER]
            seen = [some[:, columns.numpy()].ravel() for columns in self.columns]
            counts += [np.bincount(each, minlength=layout.codebook_size) for each in seen]
        self.log_p = torch.from_numpy(np.log(counts / counts.sum(1, keepdims=True)))  # (codebooks, K) float64

    def nll(self, codes: Tensor) -> Tensor:
        """Return −log p of all codes of each image, (N,) float64, for codes (N, T)."""
        pairs = zip(self.log_p, self.columns, strict=True)
        return -torch.stack([log_p[codes[:, columns].long()].sum(1) for log_p, columns in pairs]).sum(0)


def marginal_nll(train: Rows, held_out: Rows, layout: Layout) -> float:
    """Return the cross-entropy per code of held-out codes (N, T) under the train split's frequencies.

    On the train split itself this is the entropy, up to the smoothing.
    """
    codes = torch.from_numpy(np.asarray(held_out).astype(np.int64))
    return Marginal(train, layout).nll(codes).mean().item() / codes.shape[1]
