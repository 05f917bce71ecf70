"""Layers that several priors are made of: the norm, and the gated two-layer network.

Shapes: x (..., C). RMSNorm: Zhang and Sennrich (2019). SwiGLU: Shazeer (2020).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-6  # of the norms


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight, in the type of x: under autocast a weight of another type would miss the fused kernel. In
    training on a CPU in the type that autocast multiplies in."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():  # torch has no kernel of its own there
            read = (
                torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            )  # by the matrix behind
            return _NormOnCPU.apply(x, self.weight.to(read))
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _NormOnCPU(torch.autograd.Function):
    """The same in half the passes over memory, and in the type of the weight; a fifth of a training step. With u = x /
    rms(x) and a gradient g of u * weight, the gradient of x is (g * weight − u mean(g * weight * u)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
        unit = torch.mul(x, inverse.to(x.dtype)).to(weight.dtype)
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse, weight = ctx.saved_tensors
        along = gradient * unit
        mean = (along @ weight[:, None]).div_(unit.shape[-1])
        of_x = (gradient * weight).addcmul_(unit, mean, value=-1).mul_(inverse.to(unit.dtype))
        return of_x, along.flatten(0, -2).sum(0)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def hidden_width(dim: int) -> int:
    """Return the width of a SwiGLU's middle: 8/3 of dim, as many weights as a plain MLP of 4 x dim (Shazeer 2020)."""
    return -(-8 * dim // 3 // 32) * 32
