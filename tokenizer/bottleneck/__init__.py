"""The quantizers, which turn encoder outputs into codes: one file a kind, with its settings, paper and equation."""
