"""The use of a codebook, by counts over a whole split: never over one batch, whose size would decide.

Shapes: counts (K,), or (R, K), a row a codebook of the layout: one for each depth of each grid.
"""

import math

import torch
from torch import Tensor

from smalti.common.layout import Layout

ENOUGH = 5  # codes counted for each there is: as many drawn evenly leave 0.7% unused and show a perplexity of 0.9 K
LOW = 0.9  # of the usage that as many codes drawn evenly would reach
GROSS = 0.5  # in place of LOW where they are fewer: uneven but healthy use reaches as few as 0.7 of what even use would


def count(codes: Tensor, layout: Layout) -> Tensor:
    """Return how often each code of each codebook occurs, (R, K) int64, of codes (B, T)."""
    K, R = layout.codebook_size, layout.codebooks
    first = layout.codebook_of().to(codes.device) * K
    return torch.bincount((codes.long() + first).flatten(), minlength=R * K).view(R, K)


def perplexity(counts: Tensor) -> float:
    """Return exp(entropy) of code use: 1 when one code is used, K when all are used alike; the mean over rows."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum(-1).exp().mean().item()


def usage(counts: Tensor) -> float:
    """Return the share of the codes that were used at all."""
    return (counts > 0).double().mean().item()


def entropy_bits(counts: Tensor) -> float:
    """Return the bits that a code costs in the mean, coded by its frequency in its codebook: at most log2 K."""
    number = counts.sum(-1, keepdim=True).double()
    bits = torch.special.entr(counts.double() / number.clamp_min(1)).sum(-1) / math.log(2)
    return ((bits * number[..., 0]).sum() / number.sum().clamp_min(1)).item()


def reachable(counts: Tensor) -> float:
    """Return the usage expected of as many codes drawn evenly: below 1 where there are few codes for so many values.

    Each row has its own number: a grid of one place gives one code an image.
    """
    K = counts.shape[-1]
    return -torch.expm1(-counts.sum(-1).double() / K).mean().item()
