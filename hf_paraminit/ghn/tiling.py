"""From a decoded block to a parameter: repeat, cut, scale (GHN-3, arXiv 2303.04143, section 3; ppuda, appendix B)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

POSITION_STD = 0.02  # spread of the rows that stand for class tokens; ViT's own initialisation


def tile(block: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat `block` along every axis where `shape` is longer, and cut where it is shorter.

    Args:
        block: Tensor of as many axes as `shape`.
        shape: Wanted shape.

    Returns:
        Contiguous tensor of `shape` with `out[i, j, ...] = block[i % block.shape[0], j % block.shape[1], ...]`.
    """
    assert block.dim() == len(shape), f"cannot tile {tuple(block.shape)} to {tuple(shape)}"
    for axis, size in enumerate(shape):
        block = block.narrow(axis, 0, min(size, block.shape[axis]))
    block = block.contiguous()
    # The first axis last: its copies are whole runs of memory, and they are most of what is written.
    for axis in reversed(range(len(shape))):
        length, size = block.shape[axis], shape[axis]
        if size > length:
            starts = range(0, size, length)
            block = torch.cat([block.narrow(axis, 0, min(length, size - start)) for start in starts], dim=axis)
    return block


def fan_in_scale(shape: Sequence[int]) -> float:
    """Factor that gives a decoded tensor of `shape` (two axes or more) the variance of its fan-in.

    Gain 2 (He) for ordinary weights, 1 for depthwise and 1 x k kernels; position tables keep their scale. The
    conditions are those of the published checkpoints, k x 1 kernels included (gain 2).
    """
    is_spatial = len(shape) > 2
    if is_spatial and shape[2] >= 11 and shape[0] == 1:
        return 1.0
    is_row_kernel = len(shape) > 3 and shape[2] < shape[3]
    gain = 1.0 if is_spatial and (shape[1] == 1 or is_row_kernel) else 2.0
    return math.sqrt(gain / math.prod(shape[1:]))


def squash_norm_weight(values: Tensor) -> Tensor:
    """Map to (0, 2), the range of published norm weights."""
    return 2 * torch.sigmoid(values / 2)


def squash_bias(values: Tensor) -> Tensor:
    """Map to (-1, 1), the range of published biases."""
    return torch.tanh(values / 5)


def position_table(block: Tensor, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Lay a decoded grid out as the table of a transformer.

    Args:
        block: (1, C, g, g) decoded grid.
        shape: (1, positions, width) with positions >= g * g, or (1, g, g, width).
        generator: Draws the rows that stand for class and register tokens, which come first; None uses zeros.

    Returns:
        Table of `shape`.
    """
    if len(shape) == 4:
        return tile(block.permute(0, 2, 3, 1), shape)
    grid = block.flatten(2).transpose(1, 2)
    prefix_rows = shape[1] - grid.shape[1]
    if prefix_rows:
        prefix = block.new_zeros(1, prefix_rows, grid.shape[2])
        if generator is not None:
            drawn = torch.randn(prefix.shape, generator=generator) * POSITION_STD
            prefix = drawn.to(prefix)
        grid = torch.cat([prefix, grid], dim=1)
    return tile(grid, shape)
