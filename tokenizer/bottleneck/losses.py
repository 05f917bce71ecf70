"""The two losses between an encoder's output and its code: one squared error, where each loss moves one side.

Shapes: z_e and e alike; the losses ().
"""

from typing import Any

import torch
from torch import Tensor


class _TwoSides(torch.autograd.Function):
    """One difference for both losses, where `mse_loss` with a detach on either side computes two and keeps both."""

    @staticmethod
    def forward(ctx: Any, z_e: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        difference = e - z_e
        ctx.save_for_backward(difference)
        loss = torch.linalg.vector_norm(difference).square() / max(1, difference.numel())
        return loss, loss.clone()

    @staticmethod
    def backward(ctx: Any, of_codebook: Tensor, of_commitment: Tensor) -> tuple[Tensor, Tensor]:
        (difference,) = ctx.saved_tensors
        scale = 2 / max(1, difference.numel())
        return difference * (-scale * of_commitment), difference * (scale * of_codebook)


def codebook_and_commitment(z_e: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codebook loss, mean (sg[z_e] − e)², and the commitment loss, mean (z_e − sg[e])², without its β.

    van den Oord et al. (2017), https://arxiv.org/abs/1711.00937, eq. 3.
    """
    return _TwoSides.apply(z_e, e)
