"""The forward pass of a prior's training, compiled by torch where that is asked for, or where it pays.

Compiling takes its time at the first step and makes each step faster by what its products are: it pays from a number of
weights x codes x steps on, as `benchmarks/compiling.py` measures. What `auto` chooses follows from settings and machine
alone, so that a run that goes on computes as before. Only training is compiled: evaluation and drawing have batches of
other sizes, each of which would be compiled anew.
"""

import sys
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from smalti.common.errors import UserError
from smalti.prior.base import Prior
from smalti.prior.config import TrainConfig

# Weights x codes x steps. On a core with AVX2 (fp32) the start is 85 s and pays from 2e12 on, on one with AMX (bf16)
# 60 s and from 5e12 on.
PAYS_FROM = 5e12


def forward_of(prior: Prior, c: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """Return what training calls: the prior, or the prior compiled.

    Raises:
        UserError: it is to be compiled, and torch cannot compile here.
    """
    if c.compile is False or (c.compile == "auto" and not pays(prior, c, accelerator)):
        return prior
    why = trouble(prior.device)
    if why and c.compile is True:
        raise UserError(f"torch cannot compile here ({why}); install a C++ compiler, or leave compile out")
    if why:
        accelerator.print(f"not compiled, which would pay: torch cannot compile here ({why})", file=sys.stderr)
        return prior
    accelerator.print("the prior is compiled: the first step takes a minute, and each is faster then", file=sys.stderr)
    return cast(nn.Module, torch.compile(prior))  # a module for a module


def pays(prior: Prior, c: TrainConfig, accelerator: Accelerator) -> bool:
    """Return whether compiling was measured to pay: by the prior's kind and size, the device, and the steps."""
    if not prior.compiles or accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        return False
    weights = sum(weight.numel() for weight in prior.parameters())
    return weights * c.batch_size * prior.config.layout.length * c.steps >= PAYS_FROM


def trouble(device: torch.device) -> str | None:
    """Return why torch cannot compile for a device, in a line, or None: it compiles a sum to see."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # no compiler, one without headers, no triton: torch has an exception for each
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None
