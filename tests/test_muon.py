"""Muon on every device: torch's steps, and their products in a precision that the hardware has."""

import pytest
import torch

from smalti.prior.muon import Muon, orthogonalized

SHAPES = [(24, 8), (8, 24), (16, 16)]


def moved(optimizer: type[torch.optim.Optimizer], shape: tuple[int, int]) -> torch.Tensor:
    """Return where three steps of different gradients move a matrix of zeros."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(shape))
    steps = optimizer([matrix], lr=0.1, weight_decay=0.1, momentum=0.9)
    for _ in range(3):
        matrix.grad = torch.randn(shape, generator=generator)
        steps.step()
    return matrix.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_moves_as_torch_s_muon_moves_it(shape):
    ours, theirs = moved(Muon, shape), moved(torch.optim.Muon, shape)
    assert (ours - theirs).norm() < 0.03 * theirs.norm()  # theirs rounds to bf16's 8 bits, over five products


@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonalized_matrix_keeps_its_singular_vectors_and_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonalized(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7) @ right.T
    assert (values.diagonal() > 0.5).all() and (values.diagonal() < 1.5).all()  # what these coefficients promise
    assert (values - values.diagonal().diag()).abs().max() < 1e-4  # fp32's rounding


def test_a_parameter_without_a_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    Muon([matrix], lr=0.1).step()
    assert (matrix == 1).all()
