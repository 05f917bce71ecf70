"""The page of a run: what is there of it, what each figure means, and the sections that show it."""
