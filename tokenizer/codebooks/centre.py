"""The centre of a codebook, from which vectors and codes are taken before their distances are computed."""

from torch import Tensor


def centre_of(codebook: Tensor) -> Tensor:
    """Return the mean of a codebook (K, D) in fp32, (D,); 0 in a dimension where a code is not finite."""
    return codebook.float().mean(0).nan_to_num(0.0, 0.0, 0.0)
