"""The next-scale Transformer over codes, which draws a grid a pass, coarse first."""
