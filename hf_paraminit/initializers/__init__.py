"""Ways to compute initial weights: one file per registered name, beside the contract that all of them keep."""
