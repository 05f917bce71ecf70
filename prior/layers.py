"""Layers that several priors share: the norm, and the gated two-layer network.

Shapes: x (..., C). RMSNorm: Zhang and Sennrich (2019). SwiGLU: Shazeer (2020).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-6  # of the norms


class RMSNorm(nn.RMSNorm):
    """RMS normalization, x / rms(x) * weight, in the type of x: torch's fused kernel needs a weight of that type.

    On a CPU the result has the type that autocast multiplies in.
    """

    def __init__(self, dim: int):
        super().__init__(dim, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # torch has no fused kernel there
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            weight = self.weight.to(dtype)  # in the type of the matrix that follows
            return _NormOnCPU.apply(x, weight) if torch.is_grad_enabled() else unit_rms(x, weight)[0] * weight
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _NormOnCPU(torch.autograd.Function):
    """RMSNorm in half the passes over memory, and in the type of the weight: a fifth of a training step.

    With u = x / rms(x) and a gradient g of u * weight, the gradient of x is
    (g * weight − u mean(g * weight * u)) / rms(x).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        unit, inverse = unit_rms(x, weight)
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


def unit_rms(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) in the type of the weight, and 1 / rms(x)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = norm.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
    return torch.mul(x, inverse.to(x.dtype)).to(weight.dtype), inverse


class SwiGLU(nn.Module):
    """The gated two-layer network down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def hidden_width(dim: int) -> int:
    """Return a SwiGLU's hidden width, 8/3 of dim: as many weights as a plain MLP of width 4 x dim (Shazeer 2020)."""
    return -(-8 * dim // 3 // 32) * 32


def initialize(module: nn.Module, blocks: int) -> None:
    """Draw the initial weights of a Transformer of so many blocks.

    embeddings and matrices    N(0, 0.02²); those that add to the stream smaller by √(2 · blocks)
    place_embedding            as it is, zeros

    Small embeddings are soon what the optimizer makes of them: at N(0, 0.2²) priors of the presets ended 0.02 nats a
    code higher, a masked one 0.12, and one trained by AdamW alone 0.2.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2 and name != "place_embedding":
            nn.init.normal_(parameter, std=0.02)
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            parameter.data /= (2 * blocks) ** 0.5
