"""Streams of random numbers that depend on a seed and on words, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(seed: int, *words: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the words alone, the same in every process."""
    digest = hashlib.sha256("\0".join([str(seed), *words]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
