"""The approximate posteriors q(z | x), which turn encoder outputs into vectors: one file a kind, with its settings,
paper and equation."""
