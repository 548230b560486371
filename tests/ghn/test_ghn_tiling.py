"""From decoded blocks to parameters."""

import math

import pytest
import torch

from hf_paraminit.ghn.tiling import (
    POSITION_STD,
    fan_in_scale,
    position_table,
    squash_bias,
    squash_norm_weight,
    tile,
)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3), (9, 5), (4, 13), (11, 16), (8, 10), (1, 1), (3, 12)])
def test_matrices_repeat_with_the_period_of_the_block(shape: tuple[int, int]) -> None:
    block = torch.randn(4, 5)
    tiled = tile(block, shape)
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    assert torch.equal(tiled, block[rows % 4, columns % 5])
    assert tiled.is_contiguous()


@pytest.mark.parametrize("shape", [(7,), (3,), (20,)])
def test_vectors_repeat(shape: tuple[int]) -> None:
    block = torch.randn(7)
    assert torch.equal(tile(block, shape), block[torch.arange(shape[0]) % 7])


def test_kernels_keep_their_window() -> None:
    block = torch.randn(2, 3, 5, 5)
    tiled = tile(block, (5, 7, 5, 5))
    assert torch.equal(tiled, block[torch.arange(5) % 2][:, torch.arange(7) % 3])


def test_result_does_not_share_memory_between_targets() -> None:
    block = torch.randn(4, 4)
    first, second = tile(block, (8, 4)), tile(block, (8, 4))
    assert first.data_ptr() != second.data_ptr()
    assert first.untyped_storage().nbytes() == 8 * 4 * 4  # no repetition by stride


@pytest.mark.parametrize(
    ("shape", "gain", "fan_in"),
    [
        ((64, 32), 2, 32),  # linear
        ((1, 32), 2, 32),
        ((64, 32, 1, 1), 2, 32),
        ((64, 32, 3, 3), 2, 288),
        ((64, 8, 3, 3), 2, 72),  # grouped: the true number of inputs
        ((64, 1, 3, 3), 1, 9),  # depthwise
        ((64, 1, 1, 1), 1, 1),
        ((64, 32, 1, 7), 1, 224),  # 1 x k
        ((64, 32, 3, 7), 1, 672),  # wider than high
        ((64, 32, 7, 1), 2, 224),  # k x 1: published rule
        ((64, 3, 16, 16), 2, 768),  # patch embedding
        ((1, 32, 7, 7), 2, 1568),  # a small grid is scaled like a kernel
        ((5, 1, 8), 1, 8),
        ((5, 2, 8), 2, 16),
    ],
)
def test_fan_in_scale(shape: tuple[int, ...], gain: int, fan_in: int) -> None:
    assert fan_in_scale(shape) == pytest.approx(math.sqrt(gain / fan_in))


@pytest.mark.parametrize("shape", [(1, 197, 768), (1, 64, 14, 14), (1, 3, 11, 11)])
def test_position_tables_keep_their_scale(shape: tuple[int, ...]) -> None:
    assert fan_in_scale(shape) == 1


def test_squashing() -> None:
    values = torch.tensor([-50.0, -2.0, 0.0, 3.0, 50.0])
    assert torch.allclose(squash_norm_weight(values), 2 / (1 + torch.exp(-values / 2)))
    assert torch.allclose(squash_bias(values), torch.tanh(values / 5))
    assert squash_norm_weight(torch.zeros(1)).item() == 1
    assert squash_bias(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("num_prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("width", [4, 6, 15])
def test_position_table_layout(num_prefix: int, width: int) -> None:
    block = torch.randn(1, 6, 3, 3)
    table = position_table(block, (1, 9 + num_prefix, width), torch.Generator().manual_seed(3))
    assert table.shape == (1, 9 + num_prefix, width)
    for position in range(9):
        row = block[0, torch.arange(width) % 6, position // 3, position % 3]
        assert torch.equal(table[0, num_prefix + position], row)
    prefix = table[0, :num_prefix]
    assert torch.equal(prefix, prefix[:, torch.arange(width) % 6])  # drawn before the repetition
    assert bool((prefix != 0).all())


def test_prefix_rows_without_a_generator_are_zero() -> None:
    table = position_table(torch.randn(1, 6, 3, 3), (1, 10, 6), None)
    assert not table[0, 0].any()


def test_prefix_rows_have_the_published_spread_and_need_no_global_generator() -> None:
    random_state = torch.get_rng_state()
    table = position_table(torch.zeros(1, 50_000, 1, 1), (1, 2, 50_000), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert table[0, 0].std().item() == pytest.approx(POSITION_STD, rel=0.02)
    assert table[0, 0].mean().item() == pytest.approx(0, abs=5e-4)
