"""A prior over codes that draws a group of places a pass: what the next-scale and the next-set prior share."""
