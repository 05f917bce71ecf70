"""Muon (Jordan et al. 2024), the optimizer of a layer's matrices: torch's, in fp32 where bf16 is slow.

torch orthogonalises the update in bf16 on every device. Where the hardware has no products in bf16 they are emulated: a
step of one 1024 x 256 matrix took 1.1 s of an AMD core with AVX2, and in fp32 0.05 s. There they are in fp32.
"""

import math
from typing import Any

import torch
from torch import Tensor

from smalti.common.launch import computes_bf16


class Muon(torch.optim.Muon):
    """torch's Muon; its state and its settings are the same on every device."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step of each matrix that has a gradient."""
        devices = {p.device.type for group in self.param_groups for p in group["params"]}
        if all(computes_bf16(device) for device in devices):
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                rate = group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"]), alpha=-rate)
        return loss


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return a matrix with nearly the same singular vectors and all singular values near 1, by Newton-Schulz steps."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
