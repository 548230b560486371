"""Evenly spaced selection: fewer channels out of many (weight selection, arXiv 2311.18823)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def evenly_spaced(size: int, count: int) -> Tensor:
    """Choose `count` of `size` places: every n-th when that fits, else the nearest places to an even spacing.

    The choice depends on the two numbers alone, so every tensor that shares a width keeps the same channels.

    Returns:
        (count,) int64, rising.
    """
    assert count <= size, f"cannot choose {count} of {size}"
    if size % count == 0:
        return torch.arange(0, size, size // count)
    return torch.linspace(0, size - 1, count, dtype=torch.float32).round().long()  # halves go as published, in float32


def within_blocks(size: int, count: int, num_blocks: int) -> Tensor:
    """`evenly_spaced` in each of several equal blocks, as of queries, keys and values in one matrix."""
    block = evenly_spaced(size // num_blocks, count // num_blocks)
    return (torch.arange(num_blocks)[:, None] * (size // num_blocks) + block).flatten()


def whole_heads(size: int, count: int, head_dim: int, num_blocks: int = 1) -> Tensor:
    """Evenly spaced heads of `head_dim` channels each, in each of several equal blocks."""
    heads = within_blocks(size // head_dim, count // head_dim, num_blocks)
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def selected(tensor: Tensor, shape: Sequence[int], places: Mapping[int, Tensor] | None = None) -> Tensor:
    """Cut one dimension after another.

    Args:
        tensor: trained values.
        shape: of the result, nowhere larger.
        places: dimension -> places to keep there, where they are not evenly spaced.
    """
    for dimension, count in enumerate(shape):
        if tensor.shape[dimension] != count:
            chosen = (places or {}).get(dimension)
            chosen = evenly_spaced(tensor.shape[dimension], count) if chosen is None else chosen
            tensor = tensor.index_select(dimension, chosen)
    return tensor
