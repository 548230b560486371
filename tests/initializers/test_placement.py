"""Where a predictor runs. No GPU is used: the choice is checked, and that nothing but the choice was made."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState

import hf_paraminit
from hf_paraminit.initializers.placement import prediction_device

CPU, META, FIRST, SECOND = (torch.device(name) for name in ("cpu", "meta", "cuda:0", "cuda:1"))


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process to which Accelerate has given the second GPU."""
    monkeypatch.setattr(PartialState, "_shared_state", {"device": SECOND})


@pytest.fixture
def unaccelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not started Accelerate, whatever earlier tests did."""
    monkeypatch.setattr(PartialState, "_shared_state", {})


@pytest.mark.usefixtures("unaccelerated")
@pytest.mark.parametrize("own", [CPU, META])
def test_models_on_the_host_are_predicted_there_without_accelerate(own: torch.device) -> None:
    assert prediction_device(None, own) == CPU


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("own", [CPU, META])
def test_models_on_the_host_are_predicted_on_the_device_of_accelerate(own: torch.device) -> None:
    assert prediction_device(None, own) == SECOND


@pytest.mark.usefixtures("accelerated")
def test_models_on_an_accelerator_are_predicted_where_they_are() -> None:
    assert prediction_device(None, FIRST) == FIRST


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("own", [CPU, FIRST, SECOND])
def test_a_requested_device_wins(own: torch.device) -> None:
    assert prediction_device("cpu", own) == CPU
    assert prediction_device("cuda:0", own) == FIRST


def test_a_request_for_meta_is_none() -> None:
    assert prediction_device("meta", CPU) == CPU


def test_a_device_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    assert prediction_device("cuda", CPU) == SECOND


def test_a_state_on_the_cpu_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PartialState._shared_state, "device", CPU)
    assert prediction_device(None, META) == CPU


CODE = """
import sys, torch
from torch import nn
import hf_paraminit
{before}
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
assert hf_paraminit.initialize(model, "ghn3").coverage_tensors == 1
state = sys.modules.get("accelerate.state")
assert state is None or state.PartialState._shared_state == {{}}
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
"""


@pytest.mark.parametrize("before", ["", "import accelerate"])
def test_a_prediction_creates_no_state_of_accelerate(before: str) -> None:
    root = Path(hf_paraminit.__file__).parents[1]
    subprocess.run([sys.executable, "-c", CODE.format(before=before)], cwd=root, check=True)
