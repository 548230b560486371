"""`timm.create_model(..., init=...)` for every way timm can be asked to build a model."""

import copy
import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from name_hash import NameHash, is_name_hashed, name_hash_values
from timm.models import resolve_model_input_args, save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, PredictionError, UnknownInitializerError
from hf_paraminit.hooks import install
from hf_paraminit.initializers.initialize import initialize

MODELS = [  # small ones of many families, two with tied parameters (coat) and one with buffers built late (convit)
    "test_resnet", "test_vit", "test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet",
    "resnet10t", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mobilenetv3_small_050", "convnext_atto",
    "coat_lite_tiny", "convit_tiny", "levit_128s", "edgenext_xx_small", "mobilevit_xxs", "repvgg_a0", "ghostnet_050",
    "mixer_s32_224",
]  # fmt: skip

DIGEST = """
import hashlib, timm, torch

def digests(models):
    result = {}
    for name in models:
        torch.manual_seed(7)
        model = timm.create_model(name)
        digest = hashlib.sha256()
        for key, tensor in model.state_dict().items():
            digest.update(key.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
        result[name] = [digest.hexdigest(), state, sorted(model._model_args)]
    return result
"""


@pytest.fixture(autouse=True)
def _installed() -> None:
    install()


@pytest.fixture
def counted() -> type[NameHash]:
    """An initializer whose calls are counted from zero."""
    NameHash.calls = 0
    return NameHash


def hashed_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if is_name_hashed(parameter, name)}


def without_package(code: str) -> str:
    """Run code in a process in which importing this package fails; its output."""
    code = "import sys\nsys.modules['hf_paraminit'] = None\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """A function that writes a folder for `local-dir:` and returns its path and the model in it."""

    def write(name: str, **arguments: Any) -> tuple[Path, nn.Module]:
        torch.manual_seed(11)
        model = timm.create_model(name, **arguments)
        path = tmp_path / name
        save_for_hf(model, str(path), safe_serialization=True)
        return path, model

    return write


# Without init


def test_models_without_init_equal_those_of_a_process_that_never_saw_the_package() -> None:
    namespace: dict[str, Any] = {}
    exec(DIGEST, namespace)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the thread count splits some fills
    try:
        here = namespace["digests"](MODELS)
    finally:
        torch.set_num_threads(threads)
    there = json.loads(without_package(f"{DIGEST}\nimport json; print(json.dumps(digests({MODELS!r})))"))
    assert len(there) == 20
    for name in MODELS:
        assert here[name] == there[name], name


@pytest.mark.parametrize("arguments", [{"init": None}, {"init": None, "init_kwargs": {"seed": 1}}, {"init_kwargs": {}}])
def test_no_initializer_means_plain_timm(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet")
    torch.manual_seed(0)
    same = timm.create_model("test_resnet", **arguments)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))
    assert not hasattr(same, "_hf_paraminit")
    assert same._model_args == plain._model_args


# Random models


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_every_parameter_is_offered_and_no_buffer_changes(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = timm.create_model(name, init=NameHash)
    assert torch.equal(torch.get_rng_state(), state)
    assert hashed_names(model) == dict(model.named_parameters()).keys() == model._hf_paraminit.predicted.keys()
    for (key, buffer), before in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, before), key
    assert model.pretrained_cfg == plain.pretrained_cfg
    assert model._model_args == plain._model_args


def test_uncovered_parameters_have_timms_own_values() -> None:
    def heads(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return name_hash_values(model, [name for name in names if name.startswith("head")])

    torch.manual_seed(0)
    plain = dict(timm.create_model("test_vit").named_parameters())
    torch.manual_seed(0)
    model = timm.create_model("test_vit", init=heads)
    assert hashed_names(model) == {"head.weight", "head.bias"}
    assert all(torch.equal(p, plain[n]) for n, p in model.named_parameters() if not n.startswith("head"))


def test_tied_parameters_are_offered_once() -> None:
    offered: list[str] = []

    def spy(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        offered.extend(names)
        return name_hash_values(model, names)

    model = timm.create_model("coat_tiny", init=spy)
    every_name = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    report = model._hf_paraminit
    tied = {name: text for name, text in report.predicted.items() if text.startswith("tied to ")}
    assert tied
    assert len(offered) == len(set(offered)) == len(every_name) - len(tied)
    assert report.predicted.keys() == set(every_name)
    assert report.coverage_tensors == 1.0


def test_init_kwargs_go_to_the_initializer() -> None:
    def constant(model: nn.Module, names: Sequence[str], value: float) -> dict[str, Tensor]:
        return {"fc.bias": torch.full_like(model.fc.bias, value)}

    model = timm.create_model("test_resnet", init=constant, init_kwargs={"value": 2.0, "seed": 3, "device": "cpu"})
    assert torch.equal(model.fc.bias, torch.full_like(model.fc.bias, 2.0))
    assert model._hf_paraminit.seed == 3


def test_wrong_requests_fail_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was built or a repository was read")

    monkeypatch.setattr(timm.models.resnet.ResNet, "__init__", refuse)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", refuse)
    for name in ("test_resnet", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(UnknownInitializerError, match="There is no initializer 'gnh33'"):
            timm.create_model(name, init="gnh33")
        with pytest.raises(InitializerConfigError, match=r"does not take 'sead'.*Did you mean 'seed'"):
            timm.create_model(name, init=NameHash, init_kwargs={"sead": 1})
        with pytest.raises(
            InitializerConfigError, match=r"scope must be one of missing, all, head; found 'al'. Did you mean 'all'"
        ):
            timm.create_model(name, init=NameHash, init_kwargs={"scope": "al"})
        with pytest.raises(InitializerConfigError, match="distributed must be one of auto, off"):
            timm.create_model(name, init=NameHash, init_kwargs={"distributed": "on"})
        with pytest.raises(InitializerConfigError, match="init_kwargs must be a dict"):
            timm.create_model(name, init=NameHash, init_kwargs="seed=1")


def test_a_bad_prediction_is_an_error() -> None:
    with pytest.raises(PredictionError, match=r"fc.bias: expected shape"):
        timm.create_model("test_resnet", init=lambda model, names: {"fc.bias": torch.ones(1)})


def test_deprecated_and_tagged_names_are_resolved(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hf_paraminit"):
        tagged = timm.create_model("test_resnet.r160_in1k", init=NameHash)
        with pytest.warns(UserWarning, match="Mapping deprecated model name"):
            deprecated = timm.create_model("tv_resnet34", init=NameHash)
    assert hashed_names(tagged)
    assert hashed_names(deprecated)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["test_resnet", "tv_resnet34"]
    assert tagged.pretrained_cfg["tag"] == "r160_in1k"
    assert type(tagged.pretrained_cfg["architecture"]) is str


def test_features_only_offers_the_wrappers_parameters() -> None:
    model = timm.create_model("test_resnet", features_only=True, init=NameHash)
    assert type(model).__name__ == "FeatureListNet"
    assert hashed_names(model) == dict(model.named_parameters()).keys() == model._hf_paraminit.predicted.keys()
    getter = timm.create_model("test_vit", features_only=True, init=NameHash)
    assert type(getter).__name__ == "FeatureGetterNet"
    assert all(name.startswith("model.") for name in hashed_names(getter))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scriptable_models_can_be_scripted(script: Callable[[nn.Module], nn.Module]) -> None:
    model = timm.create_model("test_resnet", scriptable=True, init=NameHash)
    scripted = script(model.eval())
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(scripted(images), model(images))


def test_pruned_models_are_offered_with_their_pruned_shapes() -> None:
    model = timm.create_model("ecaresnet50d_pruned", init=NameHash)
    full = timm.create_model("ecaresnet50d", device="meta")
    assert hashed_names(model) == dict(model.named_parameters()).keys()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in full.parameters())


@pytest.mark.parametrize("by_context", [False, True])
def test_meta_models_are_left_for_later(by_context: bool, counted: type[NameHash]) -> None:
    arguments = {} if by_context else {"device": "meta"}
    with torch.device("meta" if by_context else "cpu"), pytest.warns(UserWarning, match="on the meta device") as caught:
        model = timm.create_model("test_resnet", init=counted, **arguments)
    assert len(caught) == 1
    assert counted.calls == 0
    assert model._hf_paraminit.skipped_reason == "meta"
    model.to_empty(device="cpu")
    initialize(model, counted)
    assert hashed_names(model) == dict(model.named_parameters()).keys()


def test_bfloat16_models_are_predicted_in_float32_and_cast() -> None:
    dtypes = set()

    def noise(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        values = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        dtypes.update(value.dtype for value in values.values())
        return values

    half = timm.create_model("test_vit", init=noise, dtype=torch.bfloat16)
    full = timm.create_model("test_vit", init=noise)
    assert dtypes == {torch.float32}
    for (name, low), high in zip(half.named_parameters(), full.parameters(), strict=True):
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, high.bfloat16()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_bfloat16_models_equal_those_of_the_cpu() -> None:
    gpu = timm.create_model("test_vit", init=NameHash, device="cuda", dtype=torch.bfloat16)
    assert {p.device.type for p in gpu.parameters()} == {"cuda"}
    assert hashed_names(gpu) == dict(gpu.named_parameters()).keys()


# Models with a checkpoint


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", {"fc.weight", "fc.bias"}),
        ("vit_tiny_patch16_224", {"head.weight", "head.bias"}),
        ("test_convnext", {"head.fc.weight", "head.fc.bias"}),
        ("swin_tiny_patch4_window7_224", {"head.fc.weight", "head.fc.bias"}),
        (
            "deit_tiny_distilled_patch16_224",
            {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
        ),
    ],
)
def test_only_a_new_head_is_predicted(name: str, head: set[str], folder: Any) -> None:
    path, source = folder(name, num_classes=10)
    loaded = dict(source.named_parameters())
    model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=37, init=NameHash)
    assert model._hf_paraminit.predicted.keys() == head
    assert model._hf_paraminit.coverage_tensors == 1.0
    for key, parameter in model.named_parameters():
        assert is_name_hashed(parameter, key) if key in head else torch.equal(parameter, loaded[key]), key


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"in_chans": 1}),
        ("test_resnet", {"in_chans": 5}),
        ("test_resnet", {"num_classes": 0}),
        ("test_resnet", {"features_only": True}),
        ("test_vit", {"img_size": 192}),
        ("test_vit", {"features_only": True}),
        ("test_vit", {"num_classes": 0}),
    ],
)
def test_nothing_is_predicted_when_nothing_is_missing(
    name: str, arguments: dict[str, Any], folder: Any, counted: type[NameHash], caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = folder(name)
    plain = timm.create_model(f"local-dir:{path}", pretrained=True, **arguments)
    with caplog.at_level(logging.INFO, logger="hf_paraminit"):
        model = timm.create_model(f"local-dir:{path}", pretrained=True, init=counted, **arguments)
    assert counted.calls == 0
    assert [record.message for record in caplog.records if record.name == "hf_paraminit"] == [
        f"NameHash: nothing to predict, the checkpoint provides every parameter of {name}"
    ]
    assert model._hf_paraminit.predicted == {}
    for (key, tensor), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), key


def test_checkpoint_given_as_an_overlay_file(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    model = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, init=NameHash
    )
    assert hashed_names(model) == {"fc.weight", "fc.bias"}


def test_scope_all_ignores_the_checkpoint(folder: Any) -> None:
    path, _ = folder("test_resnet")
    model = timm.create_model(f"local-dir:{path}", pretrained=True, init=NameHash, init_kwargs={"scope": "all"})
    assert hashed_names(model) == dict(model.named_parameters()).keys()


def test_architecture_from_a_folder_without_its_weights(folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = folder("test_vit", num_classes=4)
    with caplog.at_level(logging.INFO, logger="hf_paraminit"):
        model = timm.create_model(f"local-dir:{path}", init=NameHash)
    assert hashed_names(model) == dict(model.named_parameters()).keys()
    assert model.num_classes == 4
    assert caplog.records[-1].message.startswith("test_vit: NameHash: ")


@pytest.mark.parametrize(("num_classes", "predicted"), [(1000, set()), (6, {"head.weight", "head.bias"})])
def test_custom_loaders_are_taken_to_provide_all_but_a_resized_classifier(
    num_classes: int, predicted: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load_foreign_file(model: nn.Module, path: str) -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.25)

    monkeypatch.setattr(VisionTransformer, "load_pretrained", load_foreign_file)
    overlay = {"file": str(tmp_path / "foreign.npz"), "custom_load": True}
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes, init=NameHash
    )
    assert set(model._hf_paraminit.predicted) == predicted
    assert bool((model.patch_embed.proj.weight == 0.25).all())


def test_checkpoint_path_wins_with_a_warning(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=r"weights.pth was loaded over the predicted values"):
        model = timm.create_model("test_resnet", checkpoint_path=tmp_path / "weights.pth", num_classes=5, init=NameHash)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert "loaded over the predicted values" in model._hf_paraminit.notes[-1]
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("test_resnet", checkpoint_path=tmp_path / "weights.pth", num_classes=6, init=NameHash)


# What is stored with a model


def test_saved_models_know_nothing_of_the_request(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=9, init=NameHash, init_kwargs={"seed": 5})
    assert model._model_args == {"num_classes": 9}
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert "init" not in json.loads((tmp_path / "config.json").read_text()).get("model_args", {})
    code = f"""
    import timm, hashlib
    model = timm.create_model("local-dir:{tmp_path}", pretrained=True)
    print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
    """
    content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    assert without_package(code) == hashlib.sha256(content).hexdigest()


def test_keys_in_a_polluted_repository_never_start_a_prediction(folder: Any, counted: type[NameHash]) -> None:
    path, source = folder("test_resnet", num_classes=5)
    config = json.loads((path / "config.json").read_text())
    config["model_args"] = {"num_classes": 5, "init": "no-such-initializer", "init_kwargs": {"seed": 1}}
    (path / "config.json").write_text(json.dumps(config))
    for arguments in ({}, {"init": None}):
        model = timm.create_model(f"local-dir:{path}", pretrained=True, **arguments)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
        assert "init" not in model._model_args
        assert "init" not in model.pretrained_model_args
        assert not hasattr(model, "_hf_paraminit")
    model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=6, init=counted)
    assert hashed_names(model) == {"fc.weight", "fc.bias"}
    assert "init" not in model._model_args


def test_the_request_survives_resolve_model_input_args(folder: Any) -> None:
    path, _ = folder("test_vit", num_classes=5)
    for name in ("test_vit", f"local-dir:{path}"):
        resolved = resolve_model_input_args(name, {"img_size": 192}, init=NameHash, init_kwargs={"seed": 8})
        assert "init" not in resolved
        model = timm.create_model(**resolved)
        assert hashed_names(model) == dict(model.named_parameters()).keys()
        assert model._hf_paraminit.seed == 8
        assert type(pickle.loads(pickle.dumps(resolved["model_name"]))) is str
        again = timm.create_model(**copy.deepcopy(resolved))
        assert again._hf_paraminit.seed == 8
        model._hf_paraminit = None
        assert b"hf_paraminit.hooks" not in pickle.dumps(model)


# Calls in and beside one another


def test_models_built_while_another_is_being_initialized_are_not_touched() -> None:
    inner: list[nn.Module] = []

    def builds_another(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        inner.append(timm.create_model("test_vit"))
        return name_hash_values(model, names)

    outer = timm.create_model("test_resnet", init=builds_another)
    assert hashed_names(outer) == dict(outer.named_parameters()).keys()
    assert not hasattr(inner[0], "_hf_paraminit")


def test_threads_do_not_see_each_others_requests() -> None:
    results: dict[int, Any] = {}

    def build(index: int) -> None:
        arguments = {"init": NameHash, "init_kwargs": {"seed": index}} if index % 2 else {}
        model = timm.create_model("test_resnet", **arguments)
        results[index] = getattr(model, "_hf_paraminit", None) and model._hf_paraminit.seed

    threads = [threading.Thread(target=build, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: None, 1: 1, 2: None, 3: 3, 4: None, 5: 5}


def test_the_teacher_of_a_distillation_task_is_left_alone(tmp_path: Path) -> None:
    from timm.task.distillation import DistillationTeacher

    source = timm.create_model("test_resnet", num_classes=4)
    torch.save(source.state_dict(), tmp_path / "teacher.pth")
    teacher = DistillationTeacher("test_resnet", num_classes=4, pretrained_path=str(tmp_path / "teacher.pth")).model
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), source.parameters(), strict=True))
    assert not hasattr(teacher, "_hf_paraminit")
