"""Every registered initializer on tiny models: what all of them owe a user, whatever they compute."""

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.initializers.registry import create, initializer_info, list_initializers
from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.generator import LeTsGenerator

MODELS = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_nfnet")
# Settings without which a name means nothing, or would take long.
SETTINGS: dict[str, dict[str, Any]] = {
    "control": {"of": "he"},
    "hyperrep-sample": {"policy": "layers"},  # what ships is for one architecture, none of these
    "ligo": {"steps": 1, "batch_size": 2},
    "lsuv": {"batch_size": 4},
    "mup": {"width_multiplier": 2.0},
    "synthetic-warmup": {"steps": 2, "batch_size": 8, "preset": "tiny"},
}
NEED_DONOR = {"front", "ligo", "weight-selection"}
# Published without weights that could be had offline.
WITHOUT_PREDICTOR = {"ghn1", "ghn2", "ghn-mlp", "tleg"}
# Makes vision transformers alone, here from an untrained learngene of its own.
LEARNGENE = "learngene-LeTs"
NAMES = [name for name in list_initializers() if initializer_info(name).module.startswith("hf_paraminit.")]
RUNNABLE = [name for name in NAMES if name not in WITHOUT_PREDICTOR]
# Whose values follow from the structure of the model alone.
FORMULAE = [
    name
    for name in RUNNABLE
    if name != "ghn3"
    and not create(name, **({"donor": {}} if name in NEED_DONOR else {}), **SETTINGS.get(name, {})).reads_values
]


def settings_for(name: str, model: nn.Module) -> dict[str, Any]:
    if name in NEED_DONOR:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            donor = {key: torch.randn(tensor.shape) for key, tensor in model.named_parameters()}
            return {"donor": donor, **SETTINGS.get(name, {})}
    if name == LEARNGENE:
        sizes = {"embed_dim": 32, "num_heads": 1, "depth": 2, "aux_dim": 64, "mlp_ratio": 3, "img_size": 160}
        config = LeTsConfig(**sizes, pairs=((0, 1), (0, 1)), num_classes=10)
        return {"predictor": LeTsGenerator.new(config, seed=1)}
    return SETTINGS.get(name, {})


def built(model_name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(model_name, num_classes=10).requires_grad_(True)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_table_covers_every_registered_name() -> None:
    assert len(RUNNABLE) >= 24
    assert {"default", "he", "xavier", "mimetic", "lsuv", "control", "front", "ghn3"} <= set(RUNNABLE)
    assert set(WITHOUT_PREDICTOR) <= set(NAMES)
    assert {*SETTINGS, *NEED_DONOR} <= set(RUNNABLE)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_card(name: str) -> None:
    card = initializer_info(name)
    assert card.summary
    assert "\n" not in card.summary
    assert len(card.summary) <= 100


@pytest.mark.parametrize(
    ("name", "model_name"),
    [(name, model) for name in RUNNABLE for model in MODELS if name != LEARNGENE or model == "test_vit"],
)
def test_values_are_sound_and_the_model_is_only_read(name: str, model_name: str) -> None:
    model = built(model_name)
    before, random_state = state(model), torch.get_rng_state()
    names = [name for name, _ in model.named_parameters()]
    initializer = create(name, seed=3, **settings_for(name, model))
    values = initializer.predict_isolated(model, names)
    for parameter, value in values.items():
        assert value.shape == model.get_parameter(parameter).shape, parameter
        assert value.isfinite().all(), parameter
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    again = create(name, seed=3, **settings_for(name, model)).predict_isolated(model, names)
    assert values.keys() == again.keys()
    assert all(torch.equal(values[key], again[key]) for key in values)


@pytest.mark.parametrize("name", RUNNABLE)
def test_only_offered_parameters_are_written(name: str) -> None:
    model = built("test_vit")
    before = state(model)
    offered = ["blocks.0.attn.qkv.weight", "blocks.0.norm1.weight", "head.bias"]
    report = hf_paraminit.initialize(model, name, names=offered, **settings_for(name, model))
    assert set(report.predicted) | set(report.kept) == set(offered)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed <= set(report.predicted)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_failure_leaves_the_model_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("test_vit" if name == LEARNGENE else "test_resnet")
    bias = "head.bias" if name == LEARNGENE else "fc.bias"
    before = state(model)
    initializer = create(name, **settings_for(name, model))
    predict = type(initializer).predict

    def spoilt(self: Any, target: nn.Module, names: Any) -> dict[str, Tensor]:
        return {**predict(self, target, names), bias: torch.full((10,), torch.nan)}

    monkeypatch.setattr(type(initializer), "predict", spoilt)
    with pytest.raises(hf_paraminit.PredictionError, match=re.escape(bias)):
        initializer.apply(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in FORMULAE if name not in NEED_DONOR])
def test_half_precision_gets_the_same_values_rounded(name: str) -> None:
    model, half = built("test_vit"), built("test_vit").to(torch.bfloat16)
    hf_paraminit.initialize(model, name, seed=1, **settings_for(name, model))
    report = hf_paraminit.initialize(half, name, seed=1, **settings_for(name, half))
    for key in report.predicted:
        difference = (model.get_parameter(key).bfloat16() - half.get_parameter(key)).abs().max()
        assert difference <= 0.02 * model.get_parameter(key).abs().max(), key
        assert half.get_parameter(key).dtype is torch.bfloat16
