"""A prior for each grid of a hierarchy, told of the grids above it."""
