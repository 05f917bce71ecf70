"""The precision of a computation, whatever the weights are kept in."""

import torch
from torch import Tensor


def fp32(x: Tensor) -> Tensor:
    """Return x in fp32, or in fp64 where it is that already, for computations that half precision would spoil."""
    return x if x.dtype == torch.float64 else x.float()
