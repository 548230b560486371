"""`build_model` is `initialize` after the constructor, for models that no hooked library builds."""

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from name_hash import NameHash
from torch import Tensor, nn

import hf_paraminit


class Body(nn.Module):
    """A module of the user's own, with a part from timm."""

    def __init__(self, width: int = 128, *, bias: bool = True) -> None:
        super().__init__()
        self.body = timm.create_model("test_resnet", num_classes=0)
        self.neck = nn.Linear(self.body.num_features, width, bias=bias)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.body(x)))


def test_it_equals_initialize_after_the_constructor() -> None:
    built = hf_paraminit.build_model(Body, 96, init="ghn3", init_kwargs={"seed": 2}, bias=False)
    model = Body(96, bias=False)
    report = hf_paraminit.initialize(model, "ghn3", seed=2)
    assert built._hf_paraminit.predicted == report.predicted
    for name in report.predicted:
        assert torch.equal(built.get_parameter(name), model.get_parameter(name)), name


def test_torchvision_models_are_built_without_useless_draws() -> None:
    model = hf_paraminit.build_model(torchvision.models.resnet18, init="ghn3", weights=None, num_classes=7)
    report = model._hf_paraminit
    assert report.coverage_elements > 0.999
    assert any("were not drawn" in note for note in report.notes)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_without_an_initializer_the_model_is_as_built() -> None:
    torch.manual_seed(0)
    built = hf_paraminit.build_model(Body, init=None)
    torch.manual_seed(0)
    assert all(torch.equal(p, q) for p, q in zip(built.parameters(), Body().parameters(), strict=True))


def test_parts_belong_to_the_whole() -> None:
    NameHash.calls = 0
    with hf_paraminit.default_init(NameHash):
        hf_paraminit.build_model(Body, init=NameHash)
    assert NameHash.calls == 1


@pytest.mark.parametrize(
    ("init", "init_kwargs", "message"),
    [("gnh3", None, "Did you mean 'ghn3'"), ("ghn3", {"sed": 1}, "'sed'"), ("ghn3", {"scope": "some"}, "scope")],
)
def test_wrong_requests_build_nothing(init: Any, init_kwargs: Any, message: str) -> None:
    def build() -> nn.Module:
        raise AssertionError("built all the same")

    with pytest.raises(hf_paraminit.ParamInitError, match=message):
        hf_paraminit.build_model(build, init=init, init_kwargs=init_kwargs)


def test_errors_of_the_constructor_come_through() -> None:
    with pytest.raises(TypeError, match="depth"):
        hf_paraminit.build_model(Body, init="ghn3", depth=3)


@pytest.mark.parametrize("init", ["ghn3", lambda model, names: _none(names)])
def test_a_builder_that_returns_no_module_is_refused(init: Any) -> None:
    def build() -> Any:
        return {"weight": torch.zeros(3)}

    with pytest.raises(hf_paraminit.PredictionError, match="not a dict"):
        hf_paraminit.build_model(build, init=init)


def _none(names: Sequence[str]) -> dict[str, Tensor]:
    return {}
