import math

import pytest
import torch
from torch import nn

from hf_paraminit.evaluation.weight_distribution import weight_distribution


def test_he_values_are_the_unit_of_scale() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (64 * 9)))
    found = weight_distribution(nn.Sequential(layer))
    assert found["std_over_he"] == pytest.approx(1, abs=0.02)
    assert found["kurtosis"] == pytest.approx(3, abs=0.2)
    assert found["duplicate_share"] == 0
    assert found["spectral_norm"] == pytest.approx(
        float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)), rel=1e-4
    )


def test_tiled_filters_are_found_in_either_sign() -> None:
    layer = nn.Linear(10, 4, bias=False)
    with torch.no_grad():
        layer.weight[1] = -2 * layer.weight[0]
    assert weight_distribution(nn.Sequential(layer))["duplicate_share"] == pytest.approx(1 / 6)


def test_filters_of_one_value_have_no_direction_and_constants_no_kurtosis() -> None:
    layer = nn.Linear(1, 8)
    assert weight_distribution(nn.Sequential(layer))["duplicate_share"] == 0
    nn.init.zeros_(layer.weight)
    assert weight_distribution(nn.Sequential(layer))["kurtosis"] == 0
    assert weight_distribution(nn.Flatten()) == dict.fromkeys(
        ("std_over_he", "kurtosis", "spectral_norm", "duplicate_share"), 0
    )
