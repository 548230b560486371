"""Augmentations of weights: units in another order, noise, erased values.

Axes: B checkpoints (any leading axes), N tokens, T width of a token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NOISE = 0.1  # standard deviation of SANE's multiplicative noise, on both views
ERASED_SHARE = (0.02, 0.33)  # of all values, as published
_TRIES = 10  # until a block fits


def permute_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """List hidden units in another order: one gather.

    Args:
        tokens: (B, N, T).
        index: (N * T,) of `PermutationSpec.token_index`.
    """
    return tokens.flatten(-2)[..., index].reshape(tokens.shape)


def add_noise(
    tokens: Tensor, mask: Tensor, generator: torch.Generator, *, sigma: float = NOISE, multiplicative: bool = True
) -> Tensor:
    """Multiply by 1 + sigma N(0, 1), or add sigma N(0, 1); padding stays 0.

    Args:
        tokens: (B, N, T).
        mask: (N, T) bool, True for values.
        generator: On the CPU.
        sigma: Standard deviation of the noise.
        multiplicative: Whether the noise is relative.
    """
    noise = sigma * torch.randn(tokens.shape, generator=generator, dtype=tokens.dtype).to(tokens.device)
    return tokens * (1 + noise) if multiplicative else tokens + noise * mask


def erase(
    tokens: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
    mode: Literal["block", "scatter"] = "block",
    share: tuple[float, float] = ERASED_SHARE,
    value: float | None = None,
) -> Tensor:
    """Overwrite a part of the values of some checkpoints; padding stays 0.

    Values are counted as in the flattened weights: n of them without padding. The number erased is int(n u), u uniform
    in `share`.

    Args:
        tokens: (B, N, T).
        mask: (N, T) bool, True for values.
        generator: On the CPU.
        probability: That a checkpoint is changed.
        mode: "block" overwrites a run at a uniform start (if none of ten fits, nothing), "scatter" values at positions
            drawn with replacement.
        share: Smallest and largest part that is erased.
        value: What is written; None for N(0, 1).
    """
    places = mask.flatten().nonzero().flatten()
    erased = tokens.clone(memory_format=torch.contiguous_format)
    for row in erased.view(-1, mask.numel()):
        if float(torch.rand((), generator=generator)) >= probability:
            continue
        chosen = _block(len(places), share, generator) if mode == "block" else _scatter(len(places), share, generator)
        new = torch.randn(len(chosen), generator=generator) if value is None else torch.full((len(chosen),), value)
        row[places[chosen].to(row.device)] = new.to(row)
    return erased


def _count(num_values: int, share: tuple[float, float], generator: torch.Generator) -> int:
    low, high = share
    return int(num_values * (low + (high - low) * float(torch.rand((), generator=generator))))


def _block(num_values: int, share: tuple[float, float], generator: torch.Generator) -> Tensor:
    for _ in range(_TRIES):
        count = _count(num_values, share, generator)
        start = int(torch.randint(num_values, (), generator=generator))
        if start + count <= num_values:
            return torch.arange(start, start + count)
    return torch.empty(0, dtype=torch.int64)


def _scatter(num_values: int, share: tuple[float, float], generator: torch.Generator) -> Tensor:
    return torch.randint(num_values, (_count(num_values, share, generator),), generator=generator)
