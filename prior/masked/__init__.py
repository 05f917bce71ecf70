"""The masked Transformer over codes, which draws an image in a few passes."""
