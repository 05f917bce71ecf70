"""The quantizers, which turn encoder outputs into codes: one file a kind, with its settings, paper and equation."""

from smalti.tokenizer.bottleneck import fsq, gumbel, lfq, residual, simvq, vq, vq_ema

__all__ = ["fsq", "gumbel", "lfq", "residual", "simvq", "vq", "vq_ema"]  # the kinds there are: each registers itself
