"""The two priors of the lecture that need no training: uniform, and independent draws from the code frequencies.

Both in nats per code, the scale of the learned prior's NLL beside them.
"""

import math

import numpy as np


def uniform_nll(codebook_size: int) -> float:
    """ln K."""
    return math.log(codebook_size)


def marginal_nll(train: np.ndarray, held_out: np.ndarray, codebook_size: int, code_depth: int = 1) -> float:
    """Cross-entropy of held-out codes under the train split's code frequencies at their depth (each count raised by one).

    On the codes it was counted on this is their entropy, up to the smoothing.
    """
    total = 0.0
    for seen, wanted in zip(train.reshape(-1, code_depth).T, held_out.reshape(-1, code_depth).T, strict=True):
        counts = np.bincount(seen, minlength=codebook_size) + 1.0
        total -= np.log(counts / counts.sum())[wanted].mean()
    return float(total / code_depth)
