"""How much of a codebook is used, from counts over a whole split: never from one batch, whose size would decide.

Shapes: counts (K,), or (Q, K) where a place has Q codes, a row a depth.
"""

import math

import torch
from torch import Tensor

ENOUGH = 5  # codes counted for each there is: as many drawn evenly leave 0.7% unused and show a perplexity of 0.9 K
LOW = 0.9  # of the usage that as many codes drawn evenly would reach
GROSS = 0.5  # in place of LOW where they are fewer: uneven but healthy use reaches as few as 0.7 of what even use would


def count(indices: Tensor, codebook_size: int, code_depth: int) -> Tensor:
    """How often each code occurs: indices (B, h, w) or (B, h, w, Q), or codes (B, h · w · Q) -> (Q, K) int64."""
    K, Q = codebook_size, code_depth
    depth = torch.arange(Q, device=indices.device) * K
    flat = (indices.reshape(-1, Q).long() + depth).flatten()
    return torch.bincount(flat, minlength=Q * K).view(Q, K)


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of code use: 1 when one code is used, K when all are used alike; of several depths their mean."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum(-1).exp().mean().item()


def usage(counts: Tensor) -> float:
    """Share of the codes that were used at all."""
    return (counts > 0).double().mean().item()


def entropy_bits(counts: Tensor) -> float:
    """Bits that the codes of one place cost when each is coded by its frequency: at most Q log2 K."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum().item() / math.log(2)


def reachable(counts: Tensor) -> float:
    """The usage to expect of as many codes drawn evenly: below 1 where there are few codes for so many values."""
    number, K = counts.sum(-1).max().item(), counts.shape[-1]
    return 1 - math.exp(-number / K)


def warning(counts: Tensor) -> str | None:
    """What to say of a codebook that is used too little: figure, cause and remedy; none where it is well."""
    used, could, K = usage(counts), reachable(counts), counts.shape[-1]
    if used >= (LOW if counts.sum(-1).max() >= ENOUGH * K else GROSS) * could:
        return None
    return (
        f"only {used:.1%} of the {K} codes are used (as many codes drawn evenly would use {could:.1%}): the encoder's outputs "
        "lie near few of the codebook's vectors. Remedies, the first first: model.quantizer.normalize true and "
        "model.quantizer.code_dim 8 or less; revive_below 0.05 or more; model.quantizer.kind vq_ema, simvq or fsq; a smaller "
        "model.quantizer.codebook_size. tokenizer/codebook.py draws it, and says what fits this run"
    )
