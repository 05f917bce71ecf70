"""The report of a run: the contents of its folder, the meaning of each figure, and the sections that show them."""
