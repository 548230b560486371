"""Windows of a token sequence: random ones to train on, and overlapping ones (with halo) that cover all of it.

Axes: B checkpoints (any leading axes), N tokens, W windows, L tokens of a window, D values of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError


@dataclass(frozen=True, kw_only=True)
class Window:
    """A run of tokens, of which a part is meant and the rest is context (halo).

    Attributes:
        start: First token, context included.
        stop: One past the last token.
        offset: Where the content begins, counted from `start`.
        size: Tokens of the content.
    """

    start: int
    stop: int
    offset: int
    size: int


def halo_windows(num_tokens: int, size: int, halo: int) -> list[Window]:
    """Windows of equal length whose contents are 0..num_tokens, each with context on both sides.

    At the ends a window is shifted inwards, so it has all its context on one side. (The published code refuses lengths
    whose last content is shorter than the halo; shifting agrees with it wherever it works.)

    Args:
        num_tokens: N.
        size: Tokens of a content; the last content may be shorter.
        halo: Tokens of context on each side.

    Returns:
        Windows of `size + 2 * halo` tokens; one window over all tokens if there are fewer.

    Raises:
        TrainingConfigError: A size below 1 or a halo below 0.
    """
    if size < 1 or halo < 0 or num_tokens < 1:
        raise TrainingConfigError(
            f"Cannot cut {num_tokens} tokens into windows of {size} with a halo of {halo}; sizes start at 1, halos at 0"
        )
    length = size + 2 * halo
    if num_tokens < length:
        return [Window(start=0, stop=num_tokens, offset=0, size=num_tokens)]
    windows = []
    for first in range(0, num_tokens, size):
        start = min(max(first - halo, 0), num_tokens - length)
        windows.append(
            Window(start=start, stop=start + length, offset=first - start, size=min(size, num_tokens - first))
        )
    return windows


def cut_windows(sequence: Tensor, windows: list[Window]) -> Tensor:
    """(B, W, L, D) of a sequence (B, N, D)."""
    return torch.stack([sequence[..., window.start : window.stop, :] for window in windows], -3)


def join_windows(parts: Tensor, windows: list[Window]) -> Tensor:
    """The contents of windows (B, W, L, D), put together to (B, N, D); context is dropped."""
    contents = [
        parts[..., index, window.offset : window.offset + window.size, :] for index, window in enumerate(windows)
    ]
    return torch.cat(contents, -2)


def random_window(num_tokens: int, size: int, generator: torch.Generator) -> slice:
    """A run of `size` tokens at a uniform place; all tokens if there are fewer."""
    if size >= num_tokens:
        return slice(0, num_tokens)
    start = int(torch.randint(num_tokens - size + 1, (), generator=generator))
    return slice(start, start + size)
