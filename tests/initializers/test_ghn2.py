"""The names `ghn2`, `ghn1` and `ghn-mlp`: predictors that are read from copies of the published files."""

from pathlib import Path

import pytest
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.errors import PredictorNotFoundError, UnknownInitializerError
from hf_paraminit.initializers.ghn2 import GHN2
from hf_paraminit.initializers.registry import create

CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoints" / "ghn2_micro_torchsave.pt"


def make_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("ghn2", "ghn2:imagenet"),
        ("GHN-2:CIFAR10", "ghn2:cifar10"),
        ("ppuda", "ghn2:imagenet"),
        ("ghn1", "ghn1:imagenet"),
        ("ghn1:cifar10", "ghn1:cifar10"),
        ("ghn_mlp", "ghn-mlp:cifar10"),
    ],
)
def test_names(text: str, identifier: str) -> None:
    assert create(text).identifier == identifier


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownInitializerError, match="imagenet, cifar10"):
        create("ghn2:mnist")


def test_imagenet_file_is_on_the_hub() -> None:
    assert GHN2.files["imagenet"].filename == "ghn2.pt"
    with pytest.raises(PredictorNotFoundError, match="only published inside"):
        create("ghn2:cifar10").load()  # type: ignore[attr-defined]


def test_copy_of_a_published_file() -> None:
    by_source, by_loading = make_model(), make_model()
    report = hf_paraminit.initialize(by_source, "ghn2:cifar10", source=str(CHECKPOINT))
    assert report.initializer == "ghn2"
    assert report.predictor == str(CHECKPOINT)
    assert report.coverage_tensors == 1
    hf_paraminit.initialize(by_loading, hf_paraminit.load_predictor(CHECKPOINT))
    for name, parameter in by_source.named_parameters():
        assert torch.equal(parameter, by_loading.get_parameter(name))
        assert parameter.isfinite().all()
