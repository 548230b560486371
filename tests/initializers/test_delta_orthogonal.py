import pytest
import torch
from torch import nn

import hf_paraminit


def test_only_the_centre_tap_acts_and_it_is_orthogonal() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 5, padding=2))
    hf_paraminit.initialize(model, "delta-orthogonal")
    wide, narrow = model[0].weight.detach(), model[1].weight.detach()
    torch.testing.assert_close(wide[:, :, 1, 1].T @ wide[:, :, 1, 1], torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(narrow[:, :, 2, 2] @ narrow[:, :, 2, 2].T, torch.eye(8), atol=1e-5, rtol=0)
    assert wide.count_nonzero() == 8 * 16
    assert narrow.count_nonzero() == 8 * 16


def test_a_very_deep_linear_network_keeps_norms() -> None:
    model = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular") for _ in range(300)))
    hf_paraminit.initialize(model, "delta-orthogonal")
    images = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(model(images).norm(), images.norm(), rtol=1e-3, atol=0)


def test_each_group_is_orthogonal_and_the_gain_multiplies() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8))
    hf_paraminit.initialize(model, "delta-orthogonal", gain=2.0)
    for block in model[0].weight.detach()[:, :, 1, 1].chunk(2):
        torch.testing.assert_close(block @ block.T, 4 * torch.eye(4), atol=1e-5, rtol=0)
    assert model[1].weight[:, 0, 1, 1].abs().tolist() == pytest.approx([2.0] * 8)
