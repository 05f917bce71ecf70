"""The two priors of the lecture that need no training: uniform, and independent draws from the code frequencies.

Both in nats per code, the scale of the learned prior's NLL beside them.
"""

import math

import numpy as np


def uniform_nll(codebook_size: int) -> float:
    """ln K."""
    return math.log(codebook_size)


def marginal_nll(train: np.ndarray, held_out: np.ndarray, codebook_size: int) -> float:
    """Cross-entropy of held-out codes under the train split's code frequencies (each count raised by one).

    On the codes it was counted on this is their entropy, up to the smoothing.
    """
    counts = np.bincount(train.reshape(-1), minlength=codebook_size) + 1.0
    return float(-np.log(counts / counts.sum())[held_out.reshape(-1)].mean())
