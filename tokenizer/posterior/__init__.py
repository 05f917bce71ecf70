"""The approximate posteriors q(z | x), which turn encoder outputs into vectors: one file a kind, with its settings,
paper and equation."""

from smalti.tokenizer.posterior import flow, gaussian, mixture, none

__all__ = ["flow", "gaussian", "mixture", "none"]  # the kinds there are: each registers itself
