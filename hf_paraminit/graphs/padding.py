"""How much of a convolution's kernel meets its map, and how much the zeros around it."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from hf_paraminit.graphs.primitives import operation_text


def tap_share(function: Any) -> float:
    """Share of a convolution's taps that fall on the map rather than on zero padding, averaged over positions.

    A 3 x 3 kernel with padding 1 has 1 / 9 on a map of one pixel and nearly 1 on a large map. Fan-in times this share
    is the number of values that an output really sums.

    Args:
        function: Autograd function. What is no convolution, or a transposed one, has share 1; so have convolutions
            whose padding is an operation of its own, and those without a gradient for both image and kernel.
    """
    if "Convolution" not in operation_text(type(function).__name__) or getattr(function, "_saved_transposed", True):
        return 1.0
    # Shapes are those of the functions before it: saved tensors would be computed again under gradient checkpointing.
    (source, place), (weight, _) = function.next_functions[:2]
    if source is None or weight is None:
        return 1.0
    axes = len(function._saved_padding)
    sizes, kernel = source._input_metadata[place].shape[-axes:], weight._input_metadata[0].shape[-axes:]
    results = function._input_metadata[0].shape[-axes:]
    settings = zip(function._saved_padding, function._saved_stride, function._saved_dilation, strict=True)
    return math.prod(map(_share_of_axis, sizes, kernel, results, settings))


@functools.lru_cache(maxsize=1024)  # the layers of a stage are alike
def _share_of_axis(size: int, taps: int, results: int, settings: tuple[int, int, int]) -> float:
    padding, stride, dilation = settings
    firsts = torch.arange(results).mul(stride).sub(padding)
    positions = firsts[:, None] + torch.arange(taps).mul(dilation)
    return ((positions >= 0) & (positions < size)).float().mean().item()
