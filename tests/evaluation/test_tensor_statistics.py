import math

import pytest
import torch
from torch import nn

from hf_paraminit.evaluation.tensor_statistics import (
    describe_rows,
    describe_values,
    output_units,
    row_hashes,
    share_of_locked_rows,
)


def test_values_of_all_kinds_are_told_apart() -> None:
    found = describe_values(torch.tensor([[0.0, 3.0, -4.0, 1e-42], [float("nan"), float("inf"), 0.0, 1.0]]))
    assert found.not_finite == 2
    assert found.zeros == pytest.approx(2 / 6)
    assert found.denormal == pytest.approx(1 / 6)
    assert found.max_abs == 4
    assert found.mean == pytest.approx(0)
    assert found.std == pytest.approx(math.sqrt(26 / 6))


def test_the_spread_of_huge_numbers_does_not_overflow() -> None:
    assert describe_values(torch.tensor([3e38, -3e38])).std == pytest.approx(3e38, rel=1e-6)


def test_nothing_finite_has_no_scale() -> None:
    found = describe_values(torch.full((3,), float("nan")))
    assert found.not_finite == 3
    assert math.isnan(found.mean)
    assert math.isnan(found.max_abs)


def test_empty_and_repeated_rows_are_counted_apart() -> None:
    rows = torch.randn(12, 9)
    rows[3] = rows[0]
    rows[7] = rows[0]
    rows[4:6] = 0
    found = describe_rows(rows)
    assert found.duplicate_rows == 2
    assert found.zero_rows == pytest.approx(2 / 12)
    assert (found.rank, found.rank_limit) == (8, 9)


def test_rank_of_an_outer_product_is_one() -> None:
    found = describe_rows(torch.randn(300, 1) @ torch.randn(1, 200))
    assert (found.rank, found.rank_limit) == (1, 128)


@pytest.mark.parametrize("shape", [(4, 100), (100, 4), (1, 1)])
def test_narrow_kernels_are_left_alone(shape: tuple[int, int]) -> None:
    found = describe_rows(torch.ones(shape))
    assert (found.rank, found.duplicate_rows) == (None, 0)


def test_hashes_are_equal_for_equal_rows_only() -> None:
    rows = torch.randn(1000, 33)
    assert len(row_hashes(rows).unique()) == 1000
    assert torch.equal(row_hashes(rows), row_hashes(rows.flip(0)).flip(0))
    rows[5, 32] = torch.nextafter(rows[5, 32], torch.tensor(1e9))
    assert row_hashes(rows)[5] not in row_hashes(torch.randn(1000, 33))


def test_rows_are_locked_where_their_gradients_agree_and_are_not_zero() -> None:
    rows = torch.randn(4, 8).repeat(3, 1)  # each of rows 4 to 11 repeats one of the first four
    gradients = torch.randn(12, 8)
    gradients[4:8] = gradients[:4] * (1 + 1e-5)
    assert share_of_locked_rows(rows, gradients) == 0.5
    assert share_of_locked_rows(rows, torch.zeros(12, 8)) == 0
    assert share_of_locked_rows(torch.randn(12, 8), torch.ones(12, 8)) == 0


def test_output_units_are_the_rows_whatever_the_layer_keeps_first() -> None:
    linear, transposed = nn.Linear(3, 5), nn.ConvTranspose2d(3, 5, 2)
    assert output_units(linear.weight, linear).shape == (5, 3)
    assert output_units(transposed.weight, transposed).shape == (5, 12)
    assert torch.equal(output_units(transposed.weight, transposed)[1], transposed.weight[:, 1].flatten())
