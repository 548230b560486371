"""`load_predictor` on every kind of source, and predictors named by a place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from ghn_goldens import CONFIGS, FOUR_KINDS, PREDICTIONS, formula, load_hypernetwork
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import (
    CheckpointError,
    InitializerConfigError,
    PredictorNotFoundError,
    UnknownInitializerError,
    UnsafeFileError,
)
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.initializers.graph_hypernetwork import load_ghn

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
NAMES = {"ghn3_tiny": "ghn3", "ghn2_tiny": "ghn2", "ghn1_tiny": "ghn1", "mlp_tiny": "ghn-mlp"}


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    hf_paraminit.clear_cache()
    yield
    hf_paraminit.clear_cache()


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def predicted(init: Any, **settings: Any) -> dict[str, Tensor]:
    model = make_model()
    hf_paraminit.initialize(model, init, **settings)
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def weights_of(config: str) -> dict[str, Tensor]:
    weights = CONFIGS[config]["weights"].partition(",")[0]
    if not weights.startswith("formula"):
        return load_file(PREDICTIONS / weights)
    skeleton = GHN.skeleton(GHNConfig.from_dict(CONFIGS[config]["args"])).state_dict()
    return {key: formula(key, tuple(tensor.shape)) for key, tensor in skeleton.items()}


# Tensors


@pytest.mark.parametrize("config", [*FOUR_KINDS, "ghn2_tiny_in_ghn3", "ghn3_t"])
def test_state_dict_with_published_arguments(config: str) -> None:
    tensors = weights_of(config)
    init = hf_paraminit.load_predictor(tensors, config=CONFIGS[config]["args"])
    model = make_model()
    report = hf_paraminit.initialize(model, init)
    assert report.initializer == NAMES.get(config, config.partition("_")[0])
    assert report.coverage_tensors == 1
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    ghn = load_hypernetwork(config)
    with torch.no_grad():
        expected = ghn.predict(ghn.trace(make_model()), shapes)
    for name, tensor in expected.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), tensor)


@pytest.mark.parametrize("config", FOUR_KINDS)
def test_state_dict_without_config_is_recognized(config: str) -> None:
    tensors = weights_of(config)
    inferred = hf_paraminit.load_predictor(tensors)
    assert inferred.name == NAMES[config]
    assert_equal(predicted(inferred), predicted(hf_paraminit.load_predictor(tensors, config=CONFIGS[config]["args"])))


def test_tensors_of_the_caller_are_not_changed() -> None:
    tensors = weights_of("ghn3_tiny")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    predicted(hf_paraminit.load_predictor(tensors))
    assert_equal(tensors, before)
    assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize(
    "source",
    [{}, {"a": torch.zeros(1)}, {"state_dict": {"embed.weight": torch.zeros(15, 8)}}, {3: torch.zeros(1)}],
)
def test_other_tensors_are_refused(source: Any) -> None:
    with pytest.raises(CheckpointError, match=r"graph hypernetwork|GHN checkpoint"):
        hf_paraminit.load_predictor(source)


# Files


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("ghn3_micro_joblib", "ghn3"),
        ("ghn3_micro_joblib_zlib", "ghn3"),
        ("ghn3_micro_training", "ghn3"),
        ("ghn2_micro_torchsave", "ghn2"),
        ("ghn2_micro_torchsave_legacy", "ghn2"),
        ("ghn2_micro_torchsave_with_optimizer", "ghn2"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_published_files(name: str, method: str, kind: type) -> None:
    path = CHECKPOINTS / f"{name}.pt"
    init = hf_paraminit.load_predictor(kind(path))
    report = hf_paraminit.initialize(make_model(), init)
    assert (report.initializer, report.predictor) == (method, str(path))
    assert len(report.sha256) == 64


def test_safetensors_with_and_without_config(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights_of("ghn1_tiny"), path)
    args = CONFIGS["ghn1_tiny"]["args"]
    assert_equal(
        predicted(hf_paraminit.load_predictor(path)), predicted(hf_paraminit.load_predictor(path, config=args))
    )
    as_normed = hf_paraminit.load_predictor(path, config={**args, "weight_norm": True})
    assert not torch.equal(predicted(as_normed)["0.weight"], predicted(hf_paraminit.load_predictor(path))["0.weight"])


@pytest.mark.parametrize("name", ["malicious_print_joblib", "malicious_nested_joblib", "malicious_print_torchsave"])
def test_files_with_code_are_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsafeFileError):
        hf_paraminit.load_predictor(CHECKPOINTS / f"{name}.pt")
    assert "CODE EXECUTED" not in "".join(capfd.readouterr())


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, content in (("weights.pt", b"hello world, no weights"), ("weights.safetensors", b"hello"), ("w", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            hf_paraminit.load_predictor(tmp_path / name)


# Folders and places


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    load_hypernetwork("ghn2_tiny").save_pretrained(tmp_path / "my predictor")
    return tmp_path / "my predictor"


def test_folder_by_path_and_by_name(folder: Path) -> None:
    expected = predicted(hf_paraminit.load_predictor(weights_of("ghn2_tiny")))
    for init in (
        hf_paraminit.load_predictor(folder),
        hf_paraminit.load_predictor(str(folder)),
        hf_paraminit.load_predictor(f"local-dir:{folder}"),
        f"local-dir:{folder}",
        f"LOCAL_DIR:{folder}",
    ):
        assert_equal(predicted(init), expected)


def test_place_passes_settings_on(folder: Path) -> None:
    init = f"local-dir:{folder}"
    model = make_model()
    report = hf_paraminit.initialize(model, init, predict_class_layers=False, seed=3)
    assert report.seed == 3
    assert set(report.kept) == {"4.weight", "4.bias"}
    assert report.predictor == str(folder)
    with pytest.raises(InitializerConfigError, match="colour"):
        hf_paraminit.initialize(make_model(), init, colour="red")


def test_loaded_predictor_takes_settings(folder: Path) -> None:
    init = hf_paraminit.load_predictor(folder)
    report = hf_paraminit.initialize(make_model(), init, predict_class_layers=False)
    assert set(report.kept) == {"4.weight", "4.bias"}


def test_folder_is_loaded_when_load_predictor_returns(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(PredictorNotFoundError, match=r"model\.safetensors"):
        hf_paraminit.load_predictor(folder)


def test_config_with_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(InitializerConfigError, match="has its own"):
        hf_paraminit.load_predictor(folder, config={"hid": 8})


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(PredictorNotFoundError, match="no file or folder"):
        hf_paraminit.load_predictor(tmp_path / "nothing.pt")
    with pytest.raises(PredictorNotFoundError, match="hf-hub:org/name"):
        hf_paraminit.load_predictor("org/name")
    for source in (f"local-dir:{tmp_path / 'nothing'}", tmp_path):
        with pytest.raises(PredictorNotFoundError, match="No predictor at"):
            hf_paraminit.load_predictor(source)
    with pytest.raises(InitializerConfigError, match="does not name a predictor source"):
        hf_paraminit.load_predictor("ftp:somewhere")


def test_folder_of_an_unknown_method_is_refused(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"ghn2"', '"ghn9"'))
    with pytest.raises(UnknownInitializerError, match="ghn9"):
        hf_paraminit.load_predictor(folder)


def test_a_folder_is_read_once_and_again_when_it_was_written_anew(folder: Path) -> None:
    before = predicted(f"local-dir:{folder}")
    assert_equal(predicted(f"local-dir:{folder}"), before)
    assert load_ghn.cache_info().misses == 1
    changed = GHN.from_pretrained(folder)
    with torch.no_grad():
        changed.embed.weight.mul_(2)
    changed.save_pretrained(folder)
    assert not torch.equal(predicted(f"local-dir:{folder}")["0.weight"], before["0.weight"])
    hf_paraminit.clear_cache()
    assert load_ghn.cache_info().currsize == 0


def test_failed_prediction_leaves_the_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        hf_paraminit.initialize(model, f"local-dir:{folder}")
    assert_equal(model.state_dict(), before)


# Hosts


def test_timm_takes_a_loaded_predictor(folder: Path) -> None:
    hf_paraminit.install()
    by_object = timm.create_model("test_resnet", init=hf_paraminit.load_predictor(folder))
    by_name = timm.create_model("test_resnet", init=f"local-dir:{folder}")
    assert by_object._hf_paraminit.coverage_elements > 0.9
    for name in by_object._hf_paraminit.predicted:
        assert torch.equal(by_object.get_parameter(name), by_name.get_parameter(name))
