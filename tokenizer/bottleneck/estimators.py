"""The gradient estimators of the quantizers, for the encoder behind a choice that has no gradient.

Shapes: z_e and e (..., D, P), the encoder's output and the vector chosen for it. Each function returns e in the
forward direction. `benchmarks/estimators.py` measures their bias and variance where the exact gradient can be
enumerated.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-3  # of a length, below which its direction is not trusted


class _StraightThrough(torch.autograd.Function):
    """z_e + (e − z_e).detach(), without its rounding and its two passes over memory."""

    @staticmethod
    def forward(ctx: Any, z_e: Tensor, e: Tensor) -> Tensor:
        return e.view_as(e)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(z_e: Tensor, e: Tensor) -> Tensor:
    """Return e, with the gradient dL/dz_e = dL/dz_q.

    Bengio et al. (2013), https://arxiv.org/abs/1308.3432; van den Oord et al. (2017), sec. 3.2.
    """
    return _StraightThrough.apply(z_e, e)


def rotation(z_e: Tensor, e: Tensor) -> Tensor:
    """Return e, with the gradient dL/dz_q turned and scaled as e is turned and scaled from z_e.

    z_q = λ R z_e with λ = |e| / |z_e| and R = I − 2 r rᵀ + 2 ê ẑᵀ, r = (ê + ẑ) / |ê + ẑ|, λ and R held constant: Fifty
    et al. (2024), https://arxiv.org/abs/2410.06424, sec. 4.2. The angle between gradient and code is that between
    gradient and encoder output; straight-through keeps the direction instead, and is used where there is no angle.
    """
    with torch.no_grad():
        to, at = F.normalize(e, dim=-2), F.normalize(z_e, dim=-2)
        length, both = z_e.norm(dim=-2, keepdim=True), (to + at).norm(dim=-2, keepdim=True)
        r, scale = F.normalize(to + at, dim=-2), e.norm(dim=-2, keepdim=True) / length.clamp_min(LEAST)
        no_angle = (length < LEAST) | (both < LEAST)  # z_e is 0, or opposite to e: which way to turn is rounding
    along_r, along_z = (z_e * r).sum(-2, keepdim=True), (z_e * at).sum(-2, keepdim=True)
    turned = scale * (z_e - 2 * along_r * r + 2 * along_z * to)
    return straight_through(torch.where(no_angle, z_e, turned), e)  # e to the last bit, whatever rounding the turn had


def gumbel_softmax(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return a draw from softmax(logits), one-hot forward and soft backward: (N, K) -> one_hot (N, K), indices (N,).

    Jang et al. (2017), https://arxiv.org/abs/1611.01144, sec. 2.2: the argmax of logits + Gumbel noise is an exact
    draw; its gradient is taken as that of the softmax of the same sum at a temperature.
    """
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    soft = ((logits - (-uniform.log()).log()) / temperature).softmax(dim=-1)
    indices = soft.argmax(dim=-1)
    one_hot = torch.zeros_like(soft).scatter_(-1, indices[..., None], 1.0)
    return one_hot + soft - soft.detach(), indices


ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}
