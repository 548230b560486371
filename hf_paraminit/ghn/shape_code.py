"""Node features: the primitive and the shape of each node, as table look-ups (GHN-3, arXiv 2303.04143, section 3)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from hf_paraminit.ghn.config import GHNConfig

# Legend: N nodes, d hidden width.


@lru_cache
def channel_buckets(num_classes: int) -> tuple[int, ...]:
    """Channel counts that have a row of their own; the class count of the checkpoint is one of them."""
    return tuple(sorted({1, 3, num_classes, *range(8, 57, 8), *range(64, 4081, 16), *range(4096, 8193, 32)}))


@lru_cache
def spatial_buckets(max_side: int) -> tuple[int, ...]:
    """Kernel sides that have a row of their own."""
    return tuple(sorted({*range(1, max(12, max_side), 2), 14, 16}))


def nearest_bucket(size: int, buckets: tuple[int, ...]) -> int:
    """Return the index of the bucket nearest to `size`; the smaller of two equally near ones."""
    right = min(bisect.bisect_left(buckets, size), len(buckets) - 1)
    left = max(right - 1, 0)
    return right if buckets[right] - size < size - buckets[left] or left == right else left


def channel_index(channels: int, buckets: tuple[int, ...]) -> int:
    """Row of a channel count. 4 to 7 count as 8: published rule, not the nearest bucket."""
    return nearest_bucket(8 if 4 <= channels <= 7 else channels, buckets)


def spatial_index(side: int, buckets: tuple[int, ...]) -> int:
    """Row of a kernel side. 2 counts as 3: published rule, not the nearest bucket."""
    return nearest_bucket(3 if side == 2 else side, buckets)


def is_position_table(shape: Sequence[int]) -> bool:
    """Whether a tensor is a learned table (1, positions, width) of a transformer."""
    return len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1


def as_kernel_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Bring any parameter or pooling shape to (outputs, inputs, height, width)."""
    if is_position_table(shape):
        side = math.isqrt(shape[1])
        return (1, shape[2], side, side)
    outputs, inputs, height, width = (*shape, *(1,) * (4 - len(shape)))[:4]
    return outputs, inputs, height, width


class ShapeEncoder(nn.Module):
    """Concatenates four look-ups: output channels, input channels, kernel height, kernel width."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.channels = channel_buckets(config.num_classes)
        self.sides = spatial_buckets(config.max_shape[2])
        part = config.hidden_dim // 4
        # One row more than buckets: the last row stands for "has no shape".
        self.embed_spatial = nn.Embedding(len(self.sides) + 1, part)
        self.embed_channel = nn.Embedding(len(self.channels) + 1, part)

    def code(self, shape: Sequence[int] | None) -> tuple[int, int, int, int]:
        """Return the four table rows of one node."""
        if shape is None:
            return (len(self.channels), len(self.channels), len(self.sides), len(self.sides))
        outputs, inputs, height, width = as_kernel_shape(shape)
        return (
            channel_index(outputs, self.channels),
            channel_index(inputs, self.channels),
            spatial_index(height, self.sides),
            spatial_index(width, self.sides),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Embed (N, 4) int64 codes as (N, d)."""
        channels = self.embed_channel(codes[:, :2]).flatten(1)
        sides = self.embed_spatial(codes[:, 2:]).flatten(1)
        return torch.cat([channels, sides], dim=1)
