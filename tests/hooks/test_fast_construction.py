"""Hosts build faster for an initializer that reads no values, and every tensor comes out as on the normal way."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from name_hash import NameHash
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import hf_paraminit
from hf_paraminit.errors import PredictionError
from hf_paraminit.hooks.request import InitRequest
from hf_paraminit.initializers.base import Initializer

TIMM_MODELS = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet")
ONE_PER_MODULE = [timm.list_models(module=module)[0] for module in timm.list_modules()]
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
TRANSFORMERS_MODELS = {
    "vit": (ViTForImageClassification, ViTConfig(**SMALL, image_size=64)),
    "swin": (SwinForImageClassification, SwinConfig(embed_dim=48, depths=[1, 1], num_heads=[2, 4], image_size=64)),
    "convnext": (ConvNextForImageClassification, ConvNextConfig(hidden_sizes=[32, 64, 128, 160], depths=[1, 1, 1, 1])),
    "timm_wrapper": (TimmWrapperForImageClassification, TimmWrapperConfig(architecture="test_vit2")),
}


class Blind(NameHash):
    """Predicts from names alone, and says so."""

    reads_values = False


class HalfBlind(Blind):
    """Leaves every second parameter to the host."""

    def predict(self, target: nn.Module, names: Any) -> dict[str, Tensor]:
        return super().predict(target, list(names)[::2])


@pytest.fixture(autouse=True)
def _empty_memory_holds_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def build(name: str, init: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, init=init, **kwargs)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def assert_equivalent(fast: nn.Module, normal: nn.Module, report: hf_paraminit.InitReport) -> None:
    others = dict(tensors_of(normal))
    for name, tensor in tensors_of(fast):
        other = others.pop(name)
        assert (tensor.shape, tensor.dtype, tensor.stride()) == (other.shape, other.dtype, other.stride()), name
        if name in report.predicted or other.unique().numel() <= 2 or not isinstance(tensor, nn.Parameter):
            assert torch.equal(tensor, other), name
        else:  # drawn by the host, at another point of its random sequence
            assert tensor.isfinite().all(), name
            assert 0.5 < (tensor.std() + 1e-7) / (other.std() + 1e-7) < 2 or tensor.numel() < 64, name
    assert not others


@pytest.mark.parametrize("init", [Blind(), HalfBlind(), "ghn3"], ids=["blind", "half", "ghn3"])
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_models_come_out_the_same(name: str, init: Any) -> None:
    fast = build(name, init)
    normal = build(name, init, init_kwargs={"fast": False})
    assert_equivalent(fast, normal, fast._hf_paraminit)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_PER_MODULE)
def test_every_timm_module_builds_the_same(name: str) -> None:
    with torch.device("meta"):
        if sum(p.numel() for p in timm.create_model(name).parameters()) > 150e6:
            pytest.skip("too large to build twice")
    fast, normal = build(name, HalfBlind()), build(name, HalfBlind(), init_kwargs={"fast": False})
    assert_equivalent(fast, normal, fast._hf_paraminit)


@pytest.mark.parametrize("init", [Blind(), HalfBlind(), "ghn3"], ids=["blind", "half", "ghn3"])
@pytest.mark.parametrize("model_class", TRANSFORMERS_MODELS)
def test_transformers_models_come_out_the_same(model_class: str, init: Any) -> None:
    cls, config = TRANSFORMERS_MODELS[model_class]
    models = []
    for fast in (True, False):
        torch.manual_seed(0)
        models.append(hf_paraminit.from_config(cls, config, init=init, init_kwargs={"fast": fast}))
    assert_equivalent(*models, models[0]._hf_paraminit)
    assert models[0].training


@pytest.mark.parametrize("bounds", [(-0.04, 0.04), (-2.0, 2.0), (0.01, 0.1)])
def test_the_truncated_normal_of_torch_waits_as_a_whole(bounds: tuple[float, float]) -> None:
    class Layer(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.trunc_normal_(self.weight, std=0.02, a=bounds[0], b=bounds[1])
            nn.init.zeros_(self.bias)

    original = nn.init._no_grad_trunc_normal_
    request = InitRequest.from_arguments(Blind(), None)
    assert request is not None
    torch.manual_seed(0)
    layer, deferred = request.construct(lambda: Layer(128, 128))
    assert nn.init._no_grad_trunc_normal_ is original
    assert deferred
    deferred.finish()
    torch.manual_seed(0)
    assert torch.equal(layer.weight, Layer(128, 128).weight)


def test_the_report_says_what_was_not_drawn() -> None:
    report = build("test_vit", Blind())._hf_paraminit
    assert any("were not drawn" in note for note in report.notes)
    assert not any(
        "drawn" in note for note in build("test_vit", Blind(), init_kwargs={"fast": False})._hf_paraminit.notes
    )


def test_an_initializer_that_may_read_values_gets_them() -> None:
    def double(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
        return {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}

    torch.manual_seed(0)
    plain = timm.create_model("test_vit")
    doubled = build("test_vit", double)
    assert all(torch.equal(2 * p, q) for p, q in zip(plain.parameters(), doubled.parameters(), strict=True))


def test_an_initializer_that_turns_out_to_have_read_values_predicts_again() -> None:
    class Surprised(Initializer):
        reads_values = False

        def predict(self, target: nn.Module, names: Any) -> dict[str, Tensor]:
            self.reads_values = True
            return {name: 2 * p.detach() for name, p in target.named_parameters()}

    model = build("test_vit", Surprised())
    assert model.blocks[0].attn.qkv.weight.std() > 0


def test_an_initializer_that_fails_for_want_of_values_tries_again() -> None:
    class Demanding(Blind):
        def predict(self, target: nn.Module, names: Any) -> dict[str, Tensor]:
            if not all(p.isfinite().all() for p in target.parameters()):
                raise ArithmeticError("NaN in, NaN out")
            return super().predict(target, names)

    assert build("test_vit", Demanding())._hf_paraminit.coverage_tensors == 1


def test_a_model_that_is_traced_with_its_values_has_them() -> None:
    class Choosy(nn.Module):
        """Takes a way that depends on a weight, so that no trace without values is possible."""

        def __init__(self) -> None:
            super().__init__()
            self.choice = nn.Linear(128, 128)
            self.body = nn.Conv2d(3, 128, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x).mean((2, 3))
            if not self.choice.weight.abs().max().item() <= 1:  # also for NaN
                raise ValueError("these are no weights")
            return self.choice(x)

    request = InitRequest.from_arguments("ghn3", {"mode": "native"})
    assert request is not None
    model, deferred = request.construct(Choosy)
    assert deferred
    report = request.fulfil(model, None, "choosy", deferred)
    assert report.coverage_tensors == 1


def test_the_head_alone_leaves_the_other_values_as_the_seed_draws_them() -> None:
    plain = build("test_vit", None)
    head = build("test_vit", "ghn3:builtin-values", init_kwargs={"scope": "head"})
    changed = [name for name, p in head.named_parameters() if not torch.equal(p, plain.get_parameter(name))]
    assert changed == ["head.weight", "head.bias"]


def test_a_failed_prediction_leaves_a_complete_model() -> None:
    class Failing(Blind):
        def predict(self, target: nn.Module, names: Any) -> dict[str, Tensor]:
            self.target = target
            return {"head.weight": torch.full(target.get_parameter("head.weight").shape, torch.nan)}

    failing = Failing()
    with pytest.raises(PredictionError, match="NaN"):
        build("test_vit", failing)
    assert all(p.isfinite().all() for p in failing.target.parameters())


def test_values_that_the_initializer_keeps_are_copied() -> None:
    class Cached(Blind):
        def predict(self, target: nn.Module, names: Any) -> dict[str, Tensor]:
            self.cached = super().predict(target, names)
            return self.cached

    cached = Cached()
    model = build("test_vit", cached)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(value.any() for value in cached.cached.values() if value.numel() > 8)


def test_a_host_that_cannot_build_this_way_builds_normally() -> None:
    calls = []

    def build_or_fail() -> nn.Module:
        calls.append(torch.utils._python_dispatch._get_current_dispatch_mode())
        if calls[-1] is not None:
            raise RuntimeError("no modes here")
        return nn.Linear(128, 128)

    request = InitRequest.from_arguments(Blind(), None)
    assert request is not None
    model, deferred = request.construct(build_or_fail)
    assert len(calls) == 2
    assert not deferred
    assert model.weight.isfinite().all()


def test_only_the_missing_head_of_a_loaded_model_is_predicted(tmp_path: Any) -> None:
    trained = timm.create_model("test_vit", num_classes=5)
    timm.models.save_for_hf(trained, tmp_path)
    model = build(f"local-dir:{tmp_path}", "ghn3", pretrained=True, num_classes=7)
    assert set(model._hf_paraminit.predicted) == {"head.weight", "head.bias"}
    for name, parameter in model.named_parameters():
        if not name.startswith("head."):
            assert torch.equal(parameter, trained.get_parameter(name)), name


def test_trained_models_can_be_saved_and_copied_afterwards(tmp_path: Any) -> None:
    import copy

    model = build("test_vit", "ghn3")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size < 1.2 * sum(p.nbytes for p in model.parameters()) + 2**20
    twin = copy.deepcopy(model)
    twin(torch.randn(2, 3, 160, 160)).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_fast_is_a_flag(value: Any) -> None:
    with pytest.raises(hf_paraminit.InitializerConfigError, match="fast must be True or False"):
        timm.create_model("test_vit", init="ghn3", init_kwargs={"fast": value})
