"""One script a claim, peers beside us in one run; `results/` holds the numbers with the machine they were taken on."""
