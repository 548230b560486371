import pytest
import timm
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.initializers.zero_hadamard import propagating_matrix


def test_square_and_narrowing_matrices_are_identities() -> None:
    assert torch.equal(propagating_matrix(4, 4, 1.0), torch.eye(4))
    assert torch.equal(propagating_matrix(3, 5, 1.0), torch.eye(3, 5))


@pytest.mark.parametrize(("rows", "columns"), [(8, 4), (16, 3), (64, 63)])
def test_widening_matrices_have_orthonormal_columns(rows: int, columns: int) -> None:
    matrix = propagating_matrix(rows, columns, 1.0)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(columns), atol=1e-6, rtol=0)


def test_rows_are_cut_where_the_width_is_no_power_of_two() -> None:
    matrix = propagating_matrix(6, 4, 1.0)
    assert matrix.abs().eq(8**-0.5).all()
    torch.testing.assert_close(propagating_matrix(6, 4, 2**0.5), 2**0.5 * matrix)


def test_rank_is_full_so_that_training_can_use_every_direction() -> None:
    assert torch.linalg.matrix_rank(propagating_matrix(12, 7, 1.0)) == 7


def test_branches_and_classifier_start_at_zero_and_no_seed_matters() -> None:
    first, second = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    hf_paraminit.initialize(first, "zero-hadamard", seed=1)
    hf_paraminit.initialize(second, "zero-hadamard", seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.fc.weight.any()
    assert not first.layer1[0].conv2.weight.any()
    assert first.layer1[0].conv1.weight[:, :, 1, 1].equal(torch.eye(32))


def test_signals_pass_a_deep_plain_network_unchanged() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(50)),
        nn.Flatten(),
        nn.Linear(200, 2),
    )
    hf_paraminit.initialize(model, "zero-hadamard", input_size=5)
    images = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model[:51](images).norm(), images.norm())
