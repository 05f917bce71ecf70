"""One script a claim, with peers beside us in one run; `results/` holds the numbers and the machine they come from."""
