"""A graph is served again to the same structure, and to nothing else."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import hf_paraminit
from hf_paraminit.graphs.cache import GraphCache
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace


def vit(**kwargs: Any) -> nn.Module:
    return timm.create_model("test_vit", **kwargs)


def tiny_config(**kwargs: Any) -> ViTConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTConfig(**{**sizes, "image_size": 32, "patch_size": 16, **kwargs})


class Counted:
    """A cache, and how often it traced."""

    def __init__(self) -> None:
        self.cache = GraphCache()
        self.num_traced = 0

    def get(self, model: nn.Module, *settings: Any) -> ComputationalGraph:
        def run() -> ComputationalGraph:
            self.num_traced += 1
            return trace(model, mode="native")

        return self.cache.get(model, settings, run)


def as_data(graph: ComputationalGraph) -> dict[str, Any]:
    return graph.to_dict()


@pytest.mark.parametrize(
    "build",
    [
        vit,
        partial(timm.create_model, "test_resnet"),
        partial(timm.create_model, "test_convnext"),
        partial(timm.create_model, "test_efficientnet"),
        lambda: ViTForImageClassification(tiny_config()),
    ],
)
def test_an_equal_model_gets_the_same_graph(build: Callable[[], nn.Module]) -> None:
    trace(build(), mode="native")  # a library may load a part of itself when a model first runs
    counted = Counted()
    first, second = counted.get(build()), counted.get(build())
    assert first is second
    assert counted.num_traced == 1
    assert as_data(trace(build(), mode="native")) == as_data(second)


def test_the_report_that_a_model_carries_does_not_count() -> None:
    counted = Counted()
    model = vit(init="ghn3")
    first = counted.get(model)
    hf_paraminit.initialize(model, "ghn3", seed=1)
    assert counted.get(model) is first
    assert counted.get(vit()) is first


def changed(model: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    change(model)
    return model


def share_block(model: Any) -> None:
    model.blocks[1] = model.blocks[0]


def swap_activation(model: Any) -> None:
    model.blocks[0].mlp.act = nn.ReLU()


def tie(model: Any) -> None:
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight


def replace_forward(model: Any) -> None:
    model.blocks[0].forward = lambda x: x


CHANGES: list[Callable[[Any], object]] = [
    lambda m: m.eval(),
    lambda m: setattr(m, "global_pool", "avg"),
    lambda m: setattr(m.blocks[0].attn, "fused_attn", not m.blocks[0].attn.fused_attn),
    lambda m: setattr(m.blocks[0].attn, "scale", nn.Parameter(torch.ones(()))),
    lambda m: setattr(m, "head", nn.Identity()),
    lambda m: setattr(m, "head", nn.Linear(m.head.in_features, m.head.out_features, bias=False)),
    lambda m: m.reset_classifier(7),
    lambda m: m.blocks.append(nn.Identity()),
    lambda m: m.register_buffer("extra", torch.zeros(1)),
    share_block,
    swap_activation,
    tie,
    replace_forward,
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_structure_is_traced_anew(change: Callable[[Any], object]) -> None:
    counted = Counted()
    counted.get(vit())
    changed_graph = counted.get(changed(vit(), change))
    assert counted.num_traced == 2
    assert as_data(changed_graph) == as_data(trace(changed(vit(), change), mode="native"))


@pytest.mark.parametrize("kwargs", [{"num_classes": 3}, {"img_size": 96}, {"in_chans": 1}, {"depth": 1}])
def test_other_arguments_are_another_model(kwargs: dict[str, Any]) -> None:
    counted = Counted()
    counted.get(vit())
    counted.get(vit(**kwargs))
    assert counted.num_traced == 2


def test_other_settings_are_another_graph() -> None:
    counted = Counted()
    for settings in ((224,), (225,), (224, "native")):
        counted.get(vit(), *settings)
    assert counted.num_traced == 3


def test_a_config_that_differs_in_one_entry_is_another_model() -> None:
    counted = Counted()
    counted.get(ViTForImageClassification(tiny_config()))
    counted.get(ViTForImageClassification(tiny_config(hidden_act="relu")))
    assert counted.num_traced == 2


def test_a_patched_method_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    before = counted.get(vit())
    block = type(vit().blocks[0])
    monkeypatch.setattr(block, "forward", lambda self, x, *args, **kwargs: x + self.mlp(self.norm2(x)))
    after = counted.get(vit())
    assert counted.num_traced == 2
    assert len(after) < len(before)
    monkeypatch.undo()
    assert as_data(counted.get(vit())) == as_data(before)


def test_a_patched_function_and_a_switch_of_the_library_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    counted.get(vit())
    monkeypatch.setattr(timm.layers.attention, "maybe_add_mask", lambda scores, *args, **kwargs: scores * 2)
    counted.get(vit())
    assert counted.num_traced == 2
    monkeypatch.setattr(timm.layers.config, "_USE_FUSED_ATTN", 0)
    counted.get(vit())
    assert counted.num_traced == 3
    monkeypatch.setattr(nn.functional, "gelu", lambda x, approximate="none": torch.relu(x))
    counted.get(vit())
    assert counted.num_traced == 4


def test_a_switch_of_torch_is_noticed() -> None:
    counted = Counted()
    counted.get(vit())
    torch.use_deterministic_algorithms(True)
    try:
        counted.get(vit())
    finally:
        torch.use_deterministic_algorithms(False)
    assert counted.num_traced == 2


class Own(nn.Module):
    """A class of the user's, whose code can change at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("test_resnet")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class WithClosure:
    def __init__(self, factor: int) -> None:
        self.act = lambda x: x * factor


@pytest.mark.parametrize("build", [Own, lambda: changed(vit(), lambda m: setattr(m, "extra", WithClosure(2)))])
def test_what_cannot_be_compared_is_never_cached(build: Callable[[], nn.Module]) -> None:
    counted = Counted()
    counted.get(build())
    counted.get(build())
    assert counted.num_traced == 2
    assert len(counted.cache) == 0


def test_the_cache_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_paraminit.graphs.cache.MAX_GRAPHS", 2)
    counted = Counted()
    for num_classes in (2, 3, 4, 2):
        counted.get(vit(num_classes=num_classes))
    assert len(counted.cache) == 2
    assert counted.num_traced == 4
    monkeypatch.setattr("hf_paraminit.graphs.cache.MAX_BYTES", 1)
    counted.get(vit(num_classes=5))
    assert len(counted.cache) == 0


def test_predictions_with_and_without_the_cache_are_equal() -> None:
    hf_paraminit.clear_cache()
    first = timm.create_model("test_vit", init="ghn3")
    second = timm.create_model("test_vit", init="ghn3")
    hf_paraminit.clear_cache()
    third = timm.create_model("test_vit", init="ghn3")
    for name in first._hf_paraminit.predicted:
        assert torch.equal(first.get_parameter(name), second.get_parameter(name)), name
        assert torch.equal(first.get_parameter(name), third.get_parameter(name)), name
