"""The next-set Transformer over the codes of one grid, which draws a set of them a pass."""
