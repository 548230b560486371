"""Which row of the shape tables a size takes."""

import pytest
import torch

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.shape_code import (
    ShapeEncoder,
    as_kernel_shape,
    channel_buckets,
    channel_index,
    nearest_bucket,
    spatial_buckets,
    spatial_index,
)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_number_of_channel_rows(num_classes: int) -> None:
    assert len(channel_buckets(num_classes)) == 391


@pytest.mark.parametrize(("max_side", "num_rows"), [(11, 8), (16, 10)])
def test_number_of_spatial_rows(max_side: int, num_rows: int) -> None:
    assert len(spatial_buckets(max_side)) == num_rows


@pytest.mark.parametrize(
    ("channels", "bucket"),
    [
        *((1, 1), (2, 1), (3, 3), (4, 8), (5, 8), (7, 8), (8, 8), (10, 8), (12, 8), (13, 16), (60, 56), (61, 64)),
        *((1000, 1000), (1500, 1504), (4088, 4080), (8192, 8192), (8193, 8192), (100_000, 8192)),
    ],
)
def test_channel_rows(channels: int, bucket: int) -> None:
    buckets = channel_buckets(1000)
    assert buckets[channel_index(channels, buckets)] == bucket


def test_class_count_of_the_checkpoint_has_a_row() -> None:
    assert channel_buckets(10)[channel_index(10, channel_buckets(10))] == 10


@pytest.mark.parametrize(("side", "bucket"), [(1, 1), (2, 3), (3, 3), (4, 3), (6, 5), (12, 11), (13, 13), (14, 14)])
def test_spatial_rows(side: int, bucket: int) -> None:
    buckets = spatial_buckets(16)
    assert buckets[spatial_index(side, buckets)] == bucket


def test_nearest_bucket_against_brute_force() -> None:
    buckets = channel_buckets(10)
    for size in range(1, 9000, 7):
        best = min(range(len(buckets)), key=lambda index: (abs(buckets[index] - size), index))
        assert nearest_bucket(size, buckets) == best


@pytest.mark.parametrize(
    ("shape", "kernel_shape"),
    [
        ((8,), (8, 1, 1, 1)),
        ((8, 4), (8, 4, 1, 1)),
        ((8, 4, 3, 5), (8, 4, 3, 5)),
        ((1, 197, 768), (1, 768, 14, 14)),
        ((1, 49, 96), (1, 96, 7, 7)),
        ((1, 1, 96), (1, 1, 96, 1)),
        ((), (1, 1, 1, 1)),
    ],
)
def test_kernel_shape(shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> None:
    assert as_kernel_shape(shape) == kernel_shape


def test_encoder_concatenates_four_rows() -> None:
    encoder = ShapeEncoder(GHNConfig(hidden_dim=16, num_heads=4, max_shape=(8, 8, 16, 16)))
    code = encoder.code((64, 3, 7, 7))
    found = encoder(torch.tensor([code, encoder.code(None)]))
    channels, sides = encoder.embed_channel.weight, encoder.embed_spatial.weight
    assert torch.equal(found[0], torch.cat([channels[code[0]], channels[code[1]], sides[code[2]], sides[code[3]]]))
    assert torch.equal(found[1], torch.cat([channels[-1], channels[-1], sides[-1], sides[-1]]))  # no shape
