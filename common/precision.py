"""In which precision numbers are computed, whatever the weights are kept in."""

import torch
from torch import Tensor


def fp32(x: Tensor) -> Tensor:
    """Return x in fp32, or in fp64 where it is: what a half-precision model's numbers are computed in."""
    return x if x.dtype == torch.float64 else x.float()
