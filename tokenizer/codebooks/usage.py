"""The use of a codebook, by counts over a whole split: never over one batch, whose size would decide.

Shapes: counts (K,), or (Q, K) where a place has Q codes, a row a depth.
"""

import math

import torch
from torch import Tensor

ENOUGH = 5  # codes counted for each there is: as many drawn evenly leave 0.7% unused and show a perplexity of 0.9 K
LOW = 0.9  # of the usage that as many codes drawn evenly would reach
GROSS = 0.5  # in place of LOW where they are fewer: uneven but healthy use reaches as few as 0.7 of what even use would


def count(codes: Tensor, codebook_size: int, code_depth: int) -> Tensor:
    """Return how often each code occurs at each depth, (Q, K) int64, of codes (B, T), the Q of a place side by side."""
    K, Q = codebook_size, code_depth
    depth = torch.arange(Q, device=codes.device) * K
    flat = (codes.reshape(-1, Q).long() + depth).flatten()
    return torch.bincount(flat, minlength=Q * K).view(Q, K)


def perplexity(counts: Tensor) -> float:
    """Return exp(entropy) of code use: 1 when one code is used, K when all are used alike; the mean over depths."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum(-1).exp().mean().item()


def usage(counts: Tensor) -> float:
    """Return the share of the codes that were used at all."""
    return (counts > 0).double().mean().item()


def entropy_bits(counts: Tensor) -> float:
    """Return the bits that the codes of one place cost, each coded by its frequency: at most Q log2 K."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum().item() / math.log(2)


def reachable(counts: Tensor) -> float:
    """Return the usage expected of as many codes drawn evenly: below 1 where there are few codes for so many values."""
    number, K = counts.sum(-1).max().item(), counts.shape[-1]
    return 1 - math.exp(-number / K)
