"""Graph hypernetworks: GHN-3 (arXiv 2303.04143), GHN-2, GHN-1 and the MLP baseline (arXiv 2110.13100)."""
