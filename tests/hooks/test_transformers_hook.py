"""`init=` in `from_config` and `from_pretrained`, whichever way Transformers is asked for a model."""

import copy
import json
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import transformers
from name_hash import NameHash, is_name_hashed, name_hash_values
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification as Auto,
    ConvNextConfig,
    GPT2Config,
    LevitConfig,
    LevitForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    SwinConfig,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.timm_wrapper import modeling_timm_wrapper

import hf_paraminit
from hf_paraminit import from_config, from_pretrained, install, load_predictor, patched, uninstall
from hf_paraminit.errors import InitializerConfigError, PredictionError, UnknownInitializerError
from hf_paraminit.hooks.transformers import plan_changes

ROOT = Path(hf_paraminit.__file__).parents[1]
GHN3 = Path(__file__).parents[1] / "golden" / "checkpoints" / "ghn3_micro_joblib.pt"
HEAD = {"classifier.weight", "classifier.bias"}
PLACES = [
    (PreTrainedModel, "_from_config"),
    (PreTrainedModel, "from_pretrained"),
    (_BaseAutoModelClass, "from_pretrained"),
    (modeling_timm_wrapper, "_create_timm_model_with_error_handling"),
]

VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip

DIGEST = f"""
import hashlib, torch, transformers
from transformers import AutoModelForImageClassification as Auto

CONFIGS = {{
    "ViT": {VIT!r},
    "ViTMSN": {VIT!r},
    "Beit": {VIT!r},
    "Dinov2": {VIT!r},
    "ResNet": dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "RegNet": dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8),
    "Swin": dict(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "ConvNext": dict(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "TimmWrapper": dict(architecture="test_vit"),
}}

def digest(model):
    content = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        content.update(key.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    return [content.hexdigest(), state, model.training]

def digests():
    result = {{}}
    for name, arguments in CONFIGS.items():
        config = getattr(transformers, name + "Config")(**arguments, num_labels=5)
        torch.manual_seed(7)
        model = Auto.from_config(config)
        result[name] = digest(model)
        heads = ("classifier", "head")
        body = {{key: value for key, value in model.state_dict().items() if not any(head in key for head in heads)}}
        torch.manual_seed(8)
        loaded = type(model).from_pretrained(None, config=config, state_dict=body)
        result[name + " loaded"] = digest(loaded) + [list(vars(loaded.config))]
    return result
"""


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    install()
    transformers.utils.logging.disable_progress_bar()
    NameHash.calls = 0
    yield
    install()


@pytest.fixture
def garbage_is_nan() -> Iterator[None]:
    """Memory that torch allocates without a value is filled with NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What Transformers' loggers say, each line once; they hand it on by themselves only where CI=true is set."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", False)
    logging.getLogger("transformers").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("transformers").removeHandler(caplog.handler)


def vit(**changes: Any) -> ViTConfig:
    return ViTConfig(**{**VIT, "num_labels": 5, **changes})


def saved(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A folder with a complete ViT of 5 classes."""
    torch.manual_seed(11)
    return saved(ViTForImageClassification(vit()), tmp_path / "classifier")


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """A folder with the same kind of ViT, without its head."""
    torch.manual_seed(12)
    return saved(ViTModel(vit(), add_pooling_layer=False), tmp_path / "backbone")


def hashed_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if is_name_hashed(parameter, name)}


def not_finite(model: nn.Module) -> list[str]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]


def predicts_nothing(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    return {}


def run(code: str, **environment: str) -> str:
    """Run code in a fresh process that can import the package and the test helpers; its output."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Without init, and in and out


def test_models_without_init_equal_those_of_a_process_that_never_saw_the_package() -> None:
    namespace: dict[str, Any] = {}
    exec(DIGEST, namespace)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the thread count splits some fills
    try:
        here = namespace["digests"]()
    finally:
        torch.set_num_threads(threads)
    code = f"import sys\nsys.modules['hf_paraminit'] = None\n{DIGEST}\nimport json; print(json.dumps(digests()))"
    assert here == json.loads(run(code))


@pytest.mark.parametrize("arguments", [{}, {"init": None}, {"init": None, "init_kwargs": {"seed": 3}}])
def test_none_is_the_same_as_absent(arguments: dict[str, Any], backbone: str) -> None:
    models = []
    for given in ({}, arguments):
        torch.manual_seed(5)
        built = Auto.from_config(vit(), **given)
        models.append([built, Auto.from_pretrained(backbone, num_labels=3, **given), torch.rand(1)])
    for plain, other in zip(models[0][:2], models[1][:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
        assert not hasattr(other, "_hf_paraminit")
    assert torch.equal(models[0][2], models[1][2])


def test_install_and_uninstall_are_exact_inverses() -> None:
    def functions() -> list[Any]:
        return [vars(owner)[name] for owner, name in PLACES]

    installed = functions()
    install()
    assert functions() == installed
    uninstall()
    originals = functions()
    assert all(function.__module__.startswith("transformers.") for function in originals)
    assert not any(hasattr(getattr(function, "__func__", function), "__wrapped__") for function in originals)
    with pytest.raises(TypeError, match="init"):
        Auto.from_config(vit(), init=NameHash)
    for _ in range(2):
        with patched():
            assert all(new is not old for new, old in zip(functions(), originals, strict=True))
            assert hashed_names(Auto.from_config(vit(), init=NameHash))
        assert all(new is old for new, old in zip(functions(), originals, strict=True))


def test_own_doors_work_without_the_hook_and_equal_it(backbone: str) -> None:
    def build(config_door: Any, pretrained_door: Any) -> list[nn.Module]:
        torch.manual_seed(1)
        return [config_door(vit(), init=NameHash), pretrained_door(backbone, num_labels=3, init=NameHash)]

    hooked = build(Auto.from_config, Auto.from_pretrained)
    uninstall()
    original = vars(PreTrainedModel)["from_pretrained"]
    for model_class in (Auto, ViTForImageClassification):
        own = build(
            lambda config, model_class=model_class, **kwargs: from_config(model_class, config, **kwargs),
            lambda folder, model_class=model_class, **kwargs: from_pretrained(model_class, folder, **kwargs),
        )
        assert vars(PreTrainedModel)["from_pretrained"] is original
        for left, right in zip(hooked, own, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))
            assert left._hf_paraminit.predicted == right._hf_paraminit.predicted


def test_the_host_is_patched_when_it_is_imported_later() -> None:
    code = f"""
    import sys
    import hf_paraminit, name_hash
    assert "transformers" not in sys.modules
    from transformers import AutoModelForImageClassification, PreTrainedModel, ViTConfig
    model = AutoModelForImageClassification.from_config(ViTConfig(**{VIT!r}), init=name_hash.NameHash)
    assert name_hash.is_name_hashed(model.classifier.bias, "classifier.bias")
    hf_paraminit.uninstall()
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("hf_paraminit")]
    print(hasattr(vars(PreTrainedModel)["_from_config"].__func__, "__wrapped__"))
    """
    assert run(code) == "False"


def test_a_release_that_is_organised_in_another_way_gets_one_warning() -> None:
    fake = type(sys)("transformers.modeling_utils")
    fake.PreTrainedModel = type("PreTrainedModel", (), {"from_pretrained": classmethod(lambda cls: None)})
    with pytest.warns(UserWarning, match="another way") as caught:
        assert plan_changes(fake) == []
    assert len(caught) == 1


def test_a_request_that_nobody_would_take_is_not_lost_silently(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall()
    monkeypatch.setattr("hf_paraminit.hooks.transformers._has_known_methods", lambda modeling: False)
    with pytest.warns(UserWarning, match="another way"):
        install()
    with pytest.raises(TypeError, match="init"):
        Auto.from_pretrained(backbone, num_labels=3, init=NameHash)
    uninstall()


# from_config


@pytest.mark.parametrize(
    "config",
    [
        vit(),
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    ],
    ids=lambda config: config.model_type,
)
def test_from_config_offers_every_parameter(config: PreTrainedConfig) -> None:
    buffers = dict(Auto.from_config(config).named_buffers())
    model = Auto.from_config(config, init=NameHash)
    assert model.training
    assert hashed_names(model) == dict(model.named_parameters()).keys() == model._hf_paraminit.predicted.keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert hashed_names(type(model)._from_config(config, init=NameHash)) == hashed_names(model)


def test_predictions_are_made_in_float32_and_cast() -> None:
    seen = []

    def noted(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        seen.append(torch.get_default_dtype())
        return name_hash_values(model, names)

    model = Auto.from_config(vit(), init=noted, dtype=torch.bfloat16)
    assert seen == [torch.float32]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert hashed_names(model) == dict(model.named_parameters()).keys()


def test_values_that_are_not_finite_are_refused() -> None:
    def broken(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {"classifier.bias": torch.full((5,), float("nan"))}

    with pytest.raises(PredictionError, match=r"classifier\.bias"):
        Auto.from_config(vit(), init=broken, dtype=torch.bfloat16)


def test_on_meta_nothing_is_written() -> None:
    with torch.device("meta"), pytest.warns(UserWarning, match="meta device"):
        model = Auto.from_config(vit(), init=NameHash)
    assert model._hf_paraminit.skipped_reason == "meta"


@pytest.mark.parametrize(
    ("init", "init_kwargs", "error"),
    [
        ("no-such-initializer", None, UnknownInitializerError),
        (NameHash, {"no_such_setting": 1}, InitializerConfigError),
        (NameHash, {"scope": "nothing"}, InitializerConfigError),
        (NameHash, {"record": "yes"}, InitializerConfigError),
        (NameHash, 3, InitializerConfigError),
    ],
)
def test_wrong_requests_fail_before_anything_is_built(
    init: Any, init_kwargs: Any, error: type[Exception], backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ViTForImageClassification, "__init__", lambda *args, **kwargs: pytest.fail("was built"))
    with pytest.raises(error):
        Auto.from_config(vit(), init=init, init_kwargs=init_kwargs)
    with pytest.raises(error):
        Auto.from_pretrained(backbone, init=init, init_kwargs=init_kwargs)


# from_pretrained


@pytest.mark.parametrize("model_class", [Auto, ViTForImageClassification])
def test_a_full_checkpoint_leaves_nothing_to_predict(model_class: Any, classifier: str, log: Any) -> None:
    model = model_class.from_pretrained(classifier, init=NameHash)
    reference = ViTForImageClassification.from_pretrained(classifier)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    assert NameHash.calls == 0
    assert not model._hf_paraminit.predicted
    assert "filled" not in log.text
    assert not model.training


@pytest.mark.parametrize("model_class", [Auto, ViTForImageClassification])
def test_another_number_of_classes_predicts_the_head_only(model_class: Any, classifier: str) -> None:
    model = model_class.from_pretrained(classifier, num_labels=3, ignore_mismatched_sizes=True, init=NameHash)
    assert hashed_names(model) == HEAD
    assert not model.training
    source = ViTForImageClassification.from_pretrained(classifier)
    for name, parameter in model.vit.named_parameters():
        assert torch.equal(parameter, source.vit.get_parameter(name)), name


def test_mismatched_sizes_are_an_error_of_transformers_as_before(classifier: str) -> None:
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        Auto.from_pretrained(classifier, num_labels=3, init=NameHash)
    assert NameHash.calls == 0


def test_a_backbone_checkpoint_gets_a_predicted_head_and_a_line_in_the_load_report(backbone: str, log: Any) -> None:
    model = Auto.from_pretrained(backbone, num_labels=3, init=NameHash)
    assert hashed_names(model) == HEAD
    (line,) = [record.getMessage() for record in log.records if "filled" in record.getMessage()]
    assert line == (
        "init='NameHash' filled 2 of the 2 parameters that were not in the checkpoint: "
        "classifier.weight, classifier.bias"
    )
    assert any("LOAD REPORT" in record.getMessage() for record in log.records)


def test_a_deeper_config_gets_its_extra_layers(backbone: str) -> None:
    model = AutoModel.from_pretrained(backbone, config=vit(num_hidden_layers=4), add_pooling_layer=False, init=NameHash)
    assert len(hashed_names(model)) == 32
    assert all(name.startswith(("layers.2.", "layers.3.")) for name in hashed_names(model))


def test_loading_info_is_returned_to_those_who_ask(backbone: str) -> None:
    model, info = Auto.from_pretrained(backbone, num_labels=3, init=NameHash, output_loading_info=True)
    assert set(info["missing_keys"]) == HEAD == hashed_names(model)


def test_scope_all_ignores_the_checkpoint(classifier: str) -> None:
    model = Auto.from_pretrained(classifier, init=NameHash, init_kwargs={"scope": "all"})
    assert hashed_names(model) == dict(model.named_parameters()).keys()


def test_bfloat16_checkpoint(backbone: str) -> None:
    model = Auto.from_pretrained(backbone, num_labels=3, init=NameHash, dtype=torch.bfloat16)
    assert hashed_names(model) == HEAD
    assert model.classifier.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps_of_one_device(device_map: Any, backbone: str) -> None:
    model = Auto.from_pretrained(backbone, num_labels=3, init=NameHash, device_map=device_map)
    assert hashed_names(model) == HEAD


def test_loaded_tensors_on_disk_do_not_hinder(backbone: str, tmp_path: Path) -> None:
    device_map = {"vit": "disk", "classifier": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = Auto.from_pretrained(
            backbone, num_labels=3, init=NameHash, device_map=device_map, offload_folder=tmp_path / "offload"
        )
    assert all(is_name_hashed(model.get_parameter(name), name) for name in HEAD)
    assert model.vit.layernorm.weight.is_meta
    assert model(torch.zeros(1, 3, 32, 32)).logits.isfinite().all()


def test_missing_tensors_on_disk_are_named_in_a_warning(backbone: str, tmp_path: Path) -> None:
    device_map = {"vit": "cpu", "classifier": "disk"}
    with pytest.warns(UserWarning, match=r"cannot fill classifier.weight, classifier.bias .*on disk"):
        Auto.from_pretrained(
            backbone, num_labels=3, init=NameHash, device_map=device_map, offload_folder=tmp_path / "offload"
        )
    assert NameHash.calls == 0


def test_offloaded_models_are_traced_as_if_they_were_not(backbone: str, tmp_path: Path) -> None:
    init = load_predictor(GHN3)
    plain = Auto.from_pretrained(backbone, num_labels=3, init=init)
    offloaded = Auto.from_pretrained(
        backbone, num_labels=3, init=init, device_map={"vit": "disk", "classifier": "cpu"}, offload_folder=tmp_path
    )
    assert torch.equal(plain.classifier.weight, offloaded.classifier.weight)
    assert plain._hf_paraminit.notes == offloaded._hf_paraminit.notes


# Memory that nobody wrote


@pytest.mark.usefixtures("garbage_is_nan")
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext", "levit_128s"])
def test_nothing_stays_uninitialized_in_wrapped_timm_models(architecture: str) -> None:
    config = TimmWrapperConfig(architecture=architecture, num_labels=4)
    state_before = torch.get_rng_state()
    new = TimmWrapperForImageClassification.from_pretrained(None, config=config, state_dict={})
    if architecture != "test_resnet":
        assert not_finite(new), "this architecture no longer shows what the test is for"
    upstream_state = torch.get_rng_state()
    torch.set_rng_state(state_before)
    model = TimmWrapperForImageClassification.from_pretrained(None, config=config, state_dict={}, init=predicts_nothing)
    assert torch.equal(torch.get_rng_state(), upstream_state)
    assert not_finite(model) == []
    assert model._hf_paraminit.kept.keys() >= dict(model.named_parameters()).keys()
    reference = timm.create_model(architecture, num_classes=4)
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffer, model.timm_model.get_buffer(name)), name


@pytest.mark.usefixtures("garbage_is_nan")
@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (RegNetForImageClassification, RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        (LevitForImageClassification, LevitConfig(image_size=64)),
        (ViTForImageClassification, vit()),
    ],
    ids=["regnet", "levit", "vit"],
)
def test_nothing_stays_uninitialized_in_models_of_transformers(model_class: Any, config: PreTrainedConfig) -> None:
    if model_class is not ViTForImageClassification:
        assert not_finite(model_class.from_pretrained(None, config=config, state_dict={}))
    model = model_class.from_pretrained(None, config=config, state_dict={}, init=predicts_nothing)
    assert not_finite(model) == []


@pytest.mark.usefixtures("garbage_is_nan")
def test_tensors_that_were_loaded_are_not_refilled() -> None:
    config = TimmWrapperConfig(architecture="test_vit", num_labels=4)
    source = Auto.from_config(config)
    state = {name: tensor for name, tensor in source.state_dict().items() if "blocks.0" not in name}
    model = TimmWrapperForImageClassification.from_pretrained(
        None, config=config, state_dict=state, init=predicts_nothing
    )
    assert not_finite(model) == []
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


# timm models inside Transformers


def test_wrapped_timm_models_are_predicted_under_their_own_names(tmp_path: Path) -> None:
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=4)
    model = Auto.from_config(config, init=NameHash)
    assert hashed_names(model.timm_model) == dict(model.timm_model.named_parameters()).keys()
    assert model._hf_paraminit.predicted.keys() == dict(model.named_parameters()).keys()
    folder = saved(model, tmp_path / "wrapped")
    loaded = Auto.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True, init=predicts_ones)
    assert {name for name, p in loaded.named_parameters() if (p == 1).all()} == {
        "timm_model.fc.weight",
        "timm_model.fc.bias",
    }


def predicts_ones(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: torch.ones(parameters[name].shape) for name in names}


def test_wrapped_and_plain_timm_models_get_equal_predictions() -> None:
    init = load_predictor(GHN3)
    wrapped = Auto.from_config(TimmWrapperConfig(architecture="test_resnet", num_labels=4), init=init)
    plain = timm.create_model("test_resnet", num_classes=4, init=init)
    for name in plain._hf_paraminit.predicted:
        assert torch.equal(plain.get_parameter(name), wrapped.timm_model.get_parameter(name)), name


def test_a_request_among_the_stored_timm_arguments_is_refused(tmp_path: Path) -> None:
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=4, model_args={"init": "ghn3"})
    with pytest.raises(InitializerConfigError, match="model_args"):
        Auto.from_config(config)
    folder = Path(saved(Auto.from_config(TimmWrapperConfig(architecture="test_resnet", num_labels=4)), tmp_path))
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, "model_args": {"init": "ghn3"}}))
    with pytest.raises(InitializerConfigError, match="model_args"):
        Auto.from_pretrained(folder)


def test_timm_backbones() -> None:
    config = TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2])
    model = AutoBackbone.from_config(config, init=NameHash)
    assert hashed_names(model._backbone) == dict(model._backbone.named_parameters()).keys()


def test_pretrained_timm_backbones_are_left_alone_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = timm.create_model

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        asked.append(pretrained)
        return original(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.warns(UserWarning, match="had no effect"):
        model = TimmBackbone.from_pretrained("test_resnet", init=NameHash)
    assert asked == [True]
    assert NameHash.calls == 0
    assert not hashed_names(model)


# Composite and custom models


def encoder_decoder() -> VisionEncoderDecoderConfig:
    decoder = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, add_cross_attention=True, is_decoder=True)
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit(), decoder)


def test_composite_models_are_initialized_once_as_a_whole() -> None:
    model = VisionEncoderDecoderModel._from_config(encoder_decoder(), init=NameHash)
    assert NameHash.calls == 1
    assert hashed_names(model) == dict(model.named_parameters()).keys()
    assert not hasattr(model.encoder, "_hf_paraminit")


def test_composite_models_from_a_checkpoint_and_tied_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = VisionEncoderDecoderModel._from_config(encoder_decoder())
    state = source.state_dict()
    embedding = "decoder.transformer.wte.weight"

    def load(left_out: set[str]) -> nn.Module:
        kept = {name: tensor for name, tensor in state.items() if name not in left_out}
        return VisionEncoderDecoderModel.from_pretrained(None, config=encoder_decoder(), state_dict=kept, init=NameHash)

    one_name_loaded = load({"decoder.lm_head.weight", "encoder.layernorm.weight"})
    assert hashed_names(one_name_loaded) == {"encoder.layernorm.weight"}
    assert torch.equal(one_name_loaded.decoder.lm_head.weight, state[embedding])
    other_name_loaded = load({embedding, "encoder.layernorm.weight"})
    assert hashed_names(other_name_loaded) == {"encoder.layernorm.weight"}
    none_loaded = load({embedding, "decoder.lm_head.weight"})
    assert hashed_names(none_loaded) == {embedding}
    for model in (one_name_loaded, other_name_loaded, none_loaded):
        assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight


def test_models_that_do_not_take_images_alone_have_their_image_encoder_predicted() -> None:
    model = VisionEncoderDecoderModel._from_config(encoder_decoder(), init=load_predictor(GHN3))
    predicted = model._hf_paraminit.predicted
    assert len(predicted) > 20
    assert all(name.startswith("encoder.") for name in predicted)


class TwoPartConfig(PreTrainedConfig):
    """A config that happens to have an attribute called `init`."""

    model_type = "two-part-test"

    def __init__(self, init: str = "their own", **kwargs: Any) -> None:
        self.init = init
        super().__init__(**kwargs)


class TwoPart(PreTrainedModel):
    """A model that asks for an initializer for its part, and writes into all weights in its `_init_weights`."""

    config_class = TwoPartConfig

    def __init__(self, config: TwoPartConfig) -> None:
        super().__init__(config)
        self.part = Auto.from_config(vit(), init=predicts_ones)
        self.head = nn.Linear(5, 2)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.fill_(0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.part(pixel_values).logits)


@pytest.fixture(scope="module")
def two_part() -> type[TwoPart]:
    AutoConfig.register("two-part-test", TwoPartConfig)
    Auto.register(TwoPartConfig, TwoPart)
    return TwoPart


def test_parts_that_ask_for_an_initializer_belong_to_the_request_for_the_whole(two_part: type[TwoPart]) -> None:
    alone = two_part._from_config(TwoPartConfig())
    assert (alone.part.vit.layernorm.bias == 1).all()
    whole = two_part._from_config(TwoPartConfig(), init=NameHash)
    assert hashed_names(whole) == dict(whole.named_parameters()).keys()
    assert not hasattr(whole.part, "_hf_paraminit")


def test_a_config_with_an_attribute_called_init(two_part: type[TwoPart], tmp_path: Path) -> None:
    state = {name: p for name, p in two_part(TwoPartConfig()).state_dict().items() if "head" not in name}
    two_part(TwoPartConfig()).save_pretrained(tmp_path, state_dict=state)
    for model_class in (Auto, two_part):
        model = model_class.from_pretrained(tmp_path, init=NameHash, init_kwargs={"seed": 4})
        assert hashed_names(model) == {"head.weight", "head.bias"}
        assert model.config.init == "their own"
        assert model._hf_paraminit.seed == 4
    assert AutoConfig.from_pretrained(tmp_path, init="changed").init == "changed"


def test_auto_classes_do_not_copy_the_request(backbone: str) -> None:
    class NotCopied(NameHash):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("was copied")

    init = NotCopied()
    first = Auto.from_pretrained(backbone, num_labels=3, init=init)
    assert hashed_names(first) == HEAD
    assert hashed_names(Auto.from_pretrained(backbone, num_labels=3)) == set()


def test_predicted_values_are_written_last(two_part: type[TwoPart], tmp_path: Path) -> None:
    state = {name: p for name, p in two_part(TwoPartConfig()).state_dict().items() if "head" not in name}
    two_part(TwoPartConfig()).save_pretrained(tmp_path, state_dict=state)
    model = two_part.from_pretrained(tmp_path, init=NameHash)
    assert is_name_hashed(model.head.weight, "head.weight")


def test_remote_code_inherits_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "remote_tiny.py").write_text(
        textwrap.dedent("""
        from torch import nn
        from transformers import PreTrainedConfig, PreTrainedModel

        class RemoteConfig(PreTrainedConfig):
            model_type = "remote-tiny-test"

        class RemoteModel(PreTrainedModel):
            config_class = RemoteConfig
            def __init__(self, config):
                super().__init__(config)
                self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
                self.post_init()
            def _init_weights(self, module):
                pass
        """)
    )
    auto_map = {"AutoConfig": "remote_tiny.RemoteConfig", "AutoModel": "remote_tiny.RemoteModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "remote-tiny-test", "auto_map": auto_map}))
    from safetensors.torch import save_file

    save_file(nn.Linear(4, 4).state_dict(prefix="body."), folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, init=NameHash)
    assert hashed_names(model) == {"head.weight", "head.bias"}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert len(hashed_names(AutoModel.from_config(config, trust_remote_code=True, init=NameHash))) == 4


# What a config may say


def test_nothing_in_a_config_starts_a_prediction(classifier: str) -> None:
    path = Path(classifier) / "config.json"
    stored = json.loads(path.read_text())
    polluted = {"init": "no-such-initializer", "init_kwargs": {"seed": 1}, "hf_paraminit": {"initializer": "ghn3"}}
    path.write_text(json.dumps({**stored, **polluted}))
    for model_class in (Auto, ViTForImageClassification):
        model = model_class.from_pretrained(classifier, num_labels=3, ignore_mismatched_sizes=True)
        assert not hasattr(model, "_hf_paraminit")
        model = model_class.from_pretrained(classifier, num_labels=3, ignore_mismatched_sizes=True, init=NameHash)
        assert hashed_names(model) == HEAD
    assert not hasattr(Auto.from_config(model.config), "_hf_paraminit")


def test_the_origin_is_recorded_on_request_only(backbone: str, tmp_path: Path) -> None:
    silent = Auto.from_pretrained(backbone, num_labels=3, init=NameHash)
    assert "hf_paraminit" not in json.dumps(silent.config.to_dict())
    settings = {"record": True, "seed": 6}
    for model in (
        Auto.from_pretrained(backbone, num_labels=3, init=NameHash, init_kwargs=settings),
        Auto.from_config(vit(), init=NameHash, init_kwargs=settings),
    ):
        folder = saved(model, tmp_path / "recorded")
        record = Auto.from_pretrained(folder).config.hf_paraminit
        assert (record["initializer"], record["seed"], record["coverage_tensors"]) == ("NameHash", 6, 1.0)
        assert record["version"] == hf_paraminit.__version__


def test_saved_models_know_nothing_of_the_request(tmp_path: Path) -> None:
    model = Auto.from_config(vit(), init=NameHash, init_kwargs={"seed": 5})
    plain = Auto.from_config(copy.deepcopy(model.config))
    for folder, saved_model in (("init", model), ("plain", plain)):
        saved(saved_model, tmp_path / folder)
    assert (tmp_path / "init" / "config.json").read_text() == (tmp_path / "plain" / "config.json").read_text()


# Parameters that cannot be written


class PackedParameter(nn.Parameter):
    """Stands for the weights of a quantizer: small integers under a class of their own."""


def test_quantized_parameters_are_refused_unless_they_are_not_asked_for(
    backbone: str, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ViTForImageClassification.set_use_kernels  # called when a model has been loaded

    def quantize(model: PreTrainedModel, *args: Any) -> None:
        model.vit.layernorm.weight = PackedParameter(torch.zeros(32, dtype=torch.int8), requires_grad=False)
        model.hf_quantizer = object()
        original(model, *args)

    monkeypatch.setattr(ViTForImageClassification, "set_use_kernels", quantize)
    assert hashed_names(Auto.from_pretrained(backbone, num_labels=3, init=NameHash)) == HEAD
    with pytest.raises(PredictionError, match=r"vit.layernorm.weight quantized by object"):
        Auto.from_pretrained(classifier, init=NameHash, init_kwargs={"scope": "all"})


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ViTForImageClassification.__init__

    def shard(model: PreTrainedModel, config: ViTConfig) -> None:
        original(model, config)
        sharded = distribute_tensor(model.classifier.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
        model.classifier.weight = nn.Parameter(sharded)

    monkeypatch.setattr(ViTForImageClassification, "__init__", shard)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(PredictionError, match=r"classifier\.weight: is a .*sharding"):
            Auto.from_config(vit(), init=NameHash)
    finally:
        dist.destroy_process_group()
    assert NameHash.calls == 0


def test_parameters_split_by_deepspeed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ViTForImageClassification.__init__

    def split(model: PreTrainedModel, config: ViTConfig) -> None:
        original(model, config)
        model.classifier.weight.ds_shape = model.classifier.weight.shape

    monkeypatch.setattr(ViTForImageClassification, "__init__", split)
    with pytest.raises(PredictionError, match=r"classifier\.weight split over processes"):
        Auto.from_config(vit(), init=NameHash)


def test_other_processes_of_fsdp_wait_for_the_first_one(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.modeling_utils.is_fsdp_enabled", lambda: True)
    for is_first in (True, False):
        monkeypatch.setattr("transformers.modeling_utils.is_local_dist_rank_0", lambda is_first=is_first: is_first)
        NameHash.calls = 0
        model = Auto.from_pretrained(backbone, num_labels=3, init=NameHash)
        assert NameHash.calls == int(is_first)
        assert hasattr(model, "_hf_paraminit") == is_first


# A real predictor


@pytest.mark.parametrize(
    "config",
    [vit(), ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_channels=4)],
    ids=lambda config: config.model_type,
)
def test_graph_hypernetwork_predicts_models_of_transformers(config: PreTrainedConfig) -> None:
    init = load_predictor(GHN3)
    torch.manual_seed(1)
    default = Auto.from_config(config)
    torch.manual_seed(1)
    model = Auto.from_config(config, init=init)
    report = model._hf_paraminit
    assert report.kept.keys() <= {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    assert report.predicted.keys() | report.kept.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, default.get_parameter(name)) == (name in report.kept), name
    again = Auto.from_config(config, init=init)
    assert all(torch.equal(again.get_parameter(name), model.get_parameter(name)) for name in report.predicted)
    side = getattr(config, "image_size", 32)
    assert model(torch.zeros(2, config.num_channels, side, side)).logits.isfinite().all()
