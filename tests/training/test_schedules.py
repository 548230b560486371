"""The published schedules."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.loop import TrainingConfig
from hf_paraminit.training.schedules import epoch_factor, epoch_schedule


def test_warmup_of_ghn3() -> None:
    """As its code writes it: linspace(1e-5 / lr, 1, 5) for four epochs, then a cosine that starts an epoch early."""
    rate, epochs = 4e-4, 75
    ramp = np.linspace(1e-5 / rate, 1, 5)
    for epoch in range(epochs):
        expected = ramp[epoch] if epoch < 4 else max(0, 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 70)))
        assert epoch_factor("cosine-warmup", epoch, epochs, rate) == pytest.approx(expected)
    assert 0.999 < epoch_factor("cosine-warmup", 4, epochs, rate) < 1


def test_milestones_of_ghn2() -> None:
    factors = [epoch_factor("mstep", epoch, 300, 1e-3) for epoch in (0, 199, 200, 249, 250, 299)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_and_milestones_of_ones_own() -> None:
    factors = [epoch_factor("mstep", epoch, 20, 0.1, milestones=(3, 4)) for epoch in (2, 3, 4, 19)]
    assert factors == pytest.approx([1, 0.1, 0.01, 0.01])
    warmup = [epoch_factor("cosine-warmup", epoch, 20, 0.1, warmup_epochs=3, start_rate=0.02) for epoch in (0, 1, 3)]
    assert warmup == pytest.approx([0.2, 0.6, 1.0])
    assert epoch_factor("cosine-warmup", 0, 20, 0.1, warmup_epochs=1) > 0.99


def test_steps_of_imagenet() -> None:
    factors = [epoch_factor("step", epoch, 90, 0.1) for epoch in (0, 29, 30, 59, 60, 89)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", ["cosine-warmup", "cosine", "step", "mstep", "constant"])
@pytest.mark.parametrize(("steps", "epochs"), [(30, 10), (7, 3), (5, 50)])
def test_rate_follows_the_epochs(name: str, steps: int, epochs: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    config = TrainingConfig(output="unused", steps=steps, learning_rate=0.2)
    schedule = epoch_schedule(name, epochs)(optimizer, config)  # type: ignore[arg-type]
    for step in range(steps):
        epoch = min(epochs - 1, step * epochs // steps)
        assert schedule.get_last_lr()[0] == pytest.approx(0.2 * epoch_factor(name, epoch, epochs, 0.2))  # type: ignore[arg-type]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("name", "epochs"), [("cosinus", 5), ("cosine", 0)])
def test_bad_schedules_are_refused(name: str, epochs: int) -> None:
    with pytest.raises(TrainingConfigError, match=r"expected one of cosine-warmup"):
        epoch_schedule(name, epochs)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"warmup_epochs": 0}, {"start_rate": -1.0}, {"milestones": (5, 10)}])
def test_bad_warmups_and_milestones_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingConfigError, match="milestones within the run"):
        epoch_schedule("mstep", 10, **changes)
