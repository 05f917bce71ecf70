"""The causal Transformer over codes; `fast/` holds what is there for speed alone."""
