import math

import pytest
import torch
from tiny_training import TASK, TinyNet
from torch import nn

from hf_paraminit.evaluation.gradient_flow import gradient_flow

BATCH = (TASK.train[0][:32], TASK.train[1][:32])


class Chain(nn.Sequential):
    """Linear layers without bias that multiply the scale by `gain` each."""

    def __init__(self, gain: float, depth: int = 6, width: int = 192) -> None:
        super().__init__(
            nn.Flatten(), *(nn.Linear(width, width, bias=False) for _ in range(depth)), nn.Linear(width, 3)
        )
        for layer in list(self)[1:-1]:
            with torch.no_grad():
                layer.weight.copy_(gain * torch.linalg.qr(torch.randn(width, width)).Q)


def test_the_model_is_not_touched() -> None:
    model = TinyNet(3, 3).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_flow(model, BATCH, learning_rate=1e-2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_slope_and_ratio_of_a_known_chain(gain: float) -> None:
    model = Chain(gain)
    model[-1] = nn.Linear(192, 3, bias=False)
    nn.init.orthogonal_(model[-1].weight, gain)
    flow = gradient_flow(model, BATCH, learning_rate=1e-3)
    assert flow["activation_slope"] == pytest.approx(math.log(gain), abs=0.05)
    assert flow["activation_ratio"] == pytest.approx(2**6, rel=0.2)
    assert [layer["name"] for layer in flow["layers"]] == [str(index) for index in range(1, 8)]


def test_dead_and_exploding_layers_are_counted() -> None:
    assert gradient_flow(Chain(1e-3), BATCH, learning_rate=1e-3)["dead_layers"] == 4  # 1e-3 .. 1e-18, below 1e-6
    assert gradient_flow(Chain(100.0), BATCH, learning_rate=1e-3)["exploding_layers"] >= 5


def test_inactive_channels_are_those_that_never_fire() -> None:
    model = TinyNet(3, 3)
    with torch.no_grad():
        model[3].bias[:4] = -1e4
    assert gradient_flow(model, BATCH, learning_rate=1e-2)["inactive_share"] == pytest.approx(4 / 16)


def test_collapsed_features_have_rank_one_and_a_useful_step_lowers_the_loss() -> None:
    model = TinyNet(3, 3)
    flow = gradient_flow(model, BATCH, learning_rate=1e-2)
    assert 1 < flow["effective_rank"] <= 32
    assert flow["loss_decrease"] > 0
    assert abs(flow["loss"] - math.log(3)) < 0.5
    assert -1 <= flow["half_batch_cosine"] <= 1
    with torch.no_grad():
        model[3].weight.zero_()
    assert gradient_flow(model, BATCH, learning_rate=1e-2)["effective_rank"] == pytest.approx(1.0)


def test_values_that_are_not_finite_become_none() -> None:
    model = TinyNet(3, 3)
    with torch.no_grad():
        model[-1].weight.fill_(math.inf)
    flow = gradient_flow(model, BATCH, learning_rate=1e-2)
    assert flow["loss"] is None
    assert flow["loss_decrease"] is None
