"""The Fréchet distance between two sets of features, in float64.

    features (N, D)

|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½), Dowson and Landau 1982; on images Heusel et al. 2017. A distance is named
after the network its features come from (`fd_classifier`): FID is the one on Inception's, and no other.
"""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Zero for equal means and covariances. The trace of the root is the sum of the roots of the eigenvalues."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be of one width to be compared, got {a.shape[1]} and {b.shape[1]}")
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(
            f"{min(len(a), len(b))} images give no covariance of {a.shape[1]} features; compare more than {a.shape[1]}"
        )
    a, b = a.double(), b.double()
    difference, cov_a, cov_b = a.mean(0) - b.mean(0), torch.cov(a.T), torch.cov(b.T)
    # Both are positive semi-definite, so the eigenvalues of their product are real and >= 0 up to rounding.
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0)
    return (difference @ difference + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()).item()
