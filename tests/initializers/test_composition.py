import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.utils import ParseKwargs
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ViTConfig

import hf_paraminit
from hf_paraminit.cli.main import main
from hf_paraminit.errors import InitializerConfigError, ParamInitError, PredictionError, UnknownInitializerError
from hf_paraminit.initializers.composition import Composition
from hf_paraminit.initializers.registry import create

RULES = {"*.attn.*": "xavier", "*.mlp.*": "he", "*": "default"}


def built(init: Any = None, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    # values that no rule writes are compared, so the host draws all of them
    return timm.create_model("test_vit", init=init, init_kwargs=init and {"fast": False, **settings})


def test_the_first_matching_rule_wins() -> None:
    composed, xavier, he, default = built(RULES), built("xavier"), built("he"), built()
    for name, parameter in composed.named_parameters():
        source = xavier if ".attn." in name else he if ".mlp." in name else default
        assert torch.equal(parameter, source.get_parameter(name)), name
    everything = built({"*": "he", "*.attn.*": "xavier"})
    assert torch.equal(
        everything.get_parameter("blocks.0.attn.qkv.weight"), he.get_parameter("blocks.0.attn.qkv.weight")
    )


def test_each_part_draws_as_if_it_were_alone() -> None:
    """A function that draws from the global generator sees the same numbers wherever its rule stands."""

    def noise(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: torch.randn(model.get_parameter(name).shape) for name in names}

    first = built({"*.attn.qkv.weight": noise, "*.mlp.*": noise})
    second = built({"*.mlp.*": "ghn3", "*.attn.qkv.weight": noise})
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))


def test_the_seed_reaches_every_part_that_has_none_of_its_own() -> None:
    rules = {"*.attn.*": {"init": "he", "seed": 9}, "*": "he"}
    composed, fixed, free = built(rules, seed=4), built("he", seed=9), built("he", seed=4)
    for name, parameter in composed.named_parameters():
        assert torch.equal(parameter, (fixed if ".attn." in name else free).get_parameter(name)), name


def test_the_report_says_who_wrote_what_and_which_rules_did_nothing() -> None:
    report = built({"*.attn.*": "xavier", "*.conv*": "ghn3", "*.mlp.*": {"init": "trunc02", "std": 0.1}})._hf_paraminit
    assert "by xavier (rule '*.attn.*')" in report.predicted["blocks.0.attn.qkv.weight"]
    assert "by trunc02 (rule '*.mlp.*')" in report.predicted["blocks.0.mlp.fc1.weight"]
    assert report.kept["head.weight"] == "no rule matches it"
    assert [note for note in report.notes if "'*.conv*' matched no parameter" in note]
    assert report.initializer == "{*.attn.*: xavier, *.conv*: ghn3:builtin, *.mlp.*: trunc02}"
    json.dumps(report.to_dict())


def test_the_provenance_of_the_only_predictor_is_kept() -> None:
    report = built({"*.mlp.*": "ghn3", "*": "he"})._hf_paraminit
    assert report.predictor is not None
    assert report.sha256 is not None
    assert any(phase.endswith(" trace") for phase in report.seconds)


def test_null_stands_for_the_models_own_values() -> None:
    report = built({"*.norm*": None, "*": "he"})._hf_paraminit
    assert "blocks.0.norm1.weight" in report.kept
    assert "blocks.0.attn.qkv.weight" in report.predicted


def test_one_object_may_serve_several_rules() -> None:
    he = create("he")
    report = built({"*.attn.*": he, "*.norm*": "default", "*.mlp.*": he})._hf_paraminit
    assert "rule '*.attn.*'" in report.predicted["blocks.0.attn.qkv.weight"]
    assert "He normal" in report.predicted["blocks.0.attn.qkv.weight"]


def test_json_text_is_read_as_rules() -> None:
    from_text, from_dict = built(json.dumps(RULES)), built(RULES)
    assert all(torch.equal(a, b) for a, b in zip(from_text.parameters(), from_dict.parameters(), strict=True))


def test_rules_may_nest() -> None:
    report = built({"blocks.0.*": {"*.attn.*": "xavier", "*": "he"}, "*": "default"})._hf_paraminit
    assert "by xavier" in report.predicted["blocks.0.attn.qkv.weight"]
    assert all(name.startswith("blocks.0.") for name in report.predicted)


def test_a_composition_is_an_initializer_with_copies() -> None:
    composition = create(RULES, seed=1)
    assert isinstance(composition, Composition)
    changed = create(composition, seed=2)
    assert [rule.initializer.config.seed for rule in changed.rules] == [2, 2, 2]
    assert [rule.initializer.config.seed for rule in composition.rules] == [1, 1, 1]


def test_a_part_cannot_write_what_falls_to_another() -> None:
    def greedy(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: torch.full(parameter.shape, 7.0) for name, parameter in model.named_parameters()}

    model = built({"*.attn.*": greedy, "*": "default"})
    assert model.get_parameter("blocks.0.attn.qkv.weight").eq(7).all()
    assert not model.get_parameter("head.weight").eq(7).any()


def test_a_part_that_fails_leaves_the_model_alone() -> None:
    def spoilt(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {"no.such.name": torch.zeros(3)}

    model = built()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(PredictionError, match=r"no\.such\.name"):
        hf_paraminit.initialize(model, {"*.attn.*": "he", "*": spoilt})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("init", "settings", "error", "message"),
    [
        ({}, {}, InitializerConfigError, "no rules"),
        ({"*.attn.*": "he", "*": "mimetik"}, {}, UnknownInitializerError, "mimetik"),
        ({3: "he"}, {}, InitializerConfigError, "pattern of parameter names"),
        ({"*": 3}, {}, UnknownInitializerError, "not a int"),
        ({"*": {"init": "he", "gain": 2}}, {}, InitializerConfigError, "does not take 'gain'"),
        ({"*": "he"}, {"group_aware": True}, InitializerConfigError, "beside its name"),
        ('{"*": ', {}, UnknownInitializerError, "not valid JSON"),
    ],
)
def test_faults_show_before_a_model_is_built(
    init: Any, settings: dict[str, Any], error: type[ParamInitError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        raise AssertionError("a model was built")

    monkeypatch.setattr("timm.models.vision_transformer.VisionTransformer.__init__", build)
    with pytest.raises(error, match=message):
        built(init, **settings)


def test_timms_command_lines_and_transformers_take_rules_as_well() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-kwargs", nargs="*", action=ParseKwargs)
    arguments = parser.parse_args(["--model-kwargs", 'init={"*.attn.*": "mimetic", "*": "default"}'])
    report = timm.create_model("test_vit", **arguments.model_kwargs)._hf_paraminit
    assert "by mimetic" in report.predicted["blocks.0.attn.qkv.weight"]

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = AutoModelForImageClassification.from_config(config, init={"*classifier*": "xavier", "*": "default"})
    assert set(model._hf_paraminit.predicted) == {"classifier.weight", "classifier.bias"}


def test_the_command_line_takes_rules_as_json(tmp_path: Path) -> None:
    rules = json.dumps({"*.attn.*": "xavier", "*": "default"})
    assert main(["init", "test_vit", "--init", rules, "--output", str(tmp_path / "vit")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True)
    assert torch.equal(model.blocks[0].attn.qkv.weight, built("xavier").blocks[0].attn.qkv.weight)
