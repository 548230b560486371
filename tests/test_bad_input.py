"""Bad input to the main job, end to end: one clear error, the user's model and files exactly as before.

The predictor is a tiny one in a folder of its own where files get damaged, and the built-in one elsewhere.
"""

import hashlib
import json
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit import GHN, GHNConfig
from hf_paraminit.errors import (
    CheckpointError,
    InitializerConfigError,
    OutputError,
    ParamInitError,
    PredictionError,
    PredictorNotFoundError,
    TracingError,
    UnknownInitializerError,
)

TINY = GHNConfig(hidden_dim=8, num_heads=2, num_layers=1, max_shape=(8, 8, 11, 11), num_classes=10)


@pytest.fixture(scope="module")
def tiny() -> GHN:
    return GHN.new(TINY, seed=0)


@pytest.fixture
def folder(tiny: GHN, tmp_path: Path) -> Path:
    """A healthy predictor folder, to be damaged."""
    tiny.save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


@pytest.fixture
def model() -> nn.Module:
    """Small, with a mixture of modes and of frozen and trainable parameters."""
    model = timm.create_model("test_resnet")
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    return model


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a failed initialization must not change, random generators included."""
    return {
        "tensors": {
            name: (id(tensor), digest(tensor), tensor.requires_grad)
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
        "modes": [module.training for module in model.modules()],
        "attributes": sorted(vars(model)),
        "generators": (digest(torch.get_rng_state()), repr(np.random.get_state()), random.getstate()),  # noqa: NPY002
    }


def digest(tensor: Tensor) -> str:
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def refusal(
    error: type[ParamInitError], *parts: str, model: nn.Module | None = None, files: Path | None = None
) -> Iterator[None]:
    """The block raises this error, with these parts in its message, and changes neither model nor files."""
    before = (fingerprint(model) if model else None, contents(files) if files else None)
    with pytest.raises(error) as raised:
        yield
    assert [part for part in parts if part not in str(raised.value)] == []
    assert (fingerprint(model) if model else None, contents(files) if files else None) == before


# Names, variants, files and settings

REQUESTS: dict[str, tuple[Any, dict[str, Any], type[ParamInitError], list[str]]] = {
    "name": ("gnh3", {}, UnknownInitializerError, ["'gnh3'", "Did you mean 'ghn3'", "Known:"]),
    "empty name": ("", {}, UnknownInitializerError, ["Known:", "ghn3"]),
    "kind of object": (3, {}, UnknownInitializerError, ["a name, an Initializer, a dict", "int"]),
    "variant": ("ghn3:tm9", {}, UnknownInitializerError, ["'tm9'", "tm8, sm8, lm8, xlm16", "Did you mean 'tm8'"]),
    "variant as setting": ("ghn3", {"variant": "tm9"}, UnknownInitializerError, ["'tm9'", "tm8"]),
    "path without prefix": ("/no/where.pt", {}, UnknownInitializerError, ["/no/where.pt", "local-dir:/no/where.pt"]),
    "folder": ("local-dir:/no/where", {}, PredictorNotFoundError, ["/no/where", "config.json", "paraminit convert"]),
    "source": ("ghn3", {"source": "/no/where"}, PredictorNotFoundError, ["/no/where"]),
    "setting": ("ghn3", {"sed": 1}, InitializerConfigError, ["'sed'", "it takes seed, device", "Did you mean 'seed'"]),
    "negative seed": ("ghn3", {"seed": -1}, InitializerConfigError, ["seed", "-1"]),
    "seed as text": ("ghn3", {"seed": "1"}, InitializerConfigError, ["seed must be int", "'1'"]),
    "device": ("ghn3", {"device": "gpu7"}, InitializerConfigError, ["device", "'gpu7'"]),
    "device that is not here": ("ghn3", {"device": "cuda:77"}, InitializerConfigError, ["device", "cuda:77"]),
    "choice": ("ghn3", {"attention": "flash"}, InitializerConfigError, ["attention", "'flash'", "explicit", "fused"]),
    "switch": ("ghn3", {"predict_class_layers": 1}, InitializerConfigError, ["predict_class_layers must be bool"]),
    "input size as text": ("ghn3", {"input_size": "big"}, InitializerConfigError, ["input_size", "'big'"]),
    "input size": ("ghn3", {"input_size": -3}, TracingError, ["-3", "side in pixels"]),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_wrong_requests(case: str, model: nn.Module) -> None:
    init, init_kwargs, error, parts = REQUESTS[case]
    with refusal(error, *parts, model=model):
        hf_paraminit.initialize(model, init, **init_kwargs)
    with pytest.raises(error) as raised:
        timm.create_model("test_resnet", init=init, init_kwargs=init_kwargs)
    assert all(part in str(raised.value) for part in parts)


def test_missing_files_for_load_predictor(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path / "none"):
        with refusal(PredictorNotFoundError, str(path), files=tmp_path):
            hf_paraminit.load_predictor(path)


# Damaged predictor folders

Damage = Callable[[Path], object]


def cut(name: str, keep: float) -> Damage:
    return lambda folder: (folder / name).write_bytes((raw := (folder / name).read_bytes())[: int(len(raw) * keep)])


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def edit(**changes: Any) -> Damage:
    """Change the record in config.json; `architecture` changes entries of its "config"."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "config.json").read_text())
        record["config"] |= changes.pop("architecture", {})
        (folder / "config.json").write_text(json.dumps(record | changes))

    return damage


def other_network(folder: Path) -> None:
    """The weights of something else under the right name."""
    save_file(nn.Linear(3, 3).state_dict(), folder / "model.safetensors")


def spoiled(folder: Path) -> None:
    ghn = GHN.from_pretrained(folder)
    with torch.no_grad():
        ghn.embed.weight[3, 2] = torch.nan
    save_file(ghn.state_dict(), folder / "model.safetensors")


WEIGHTS, CONFIG = "model.safetensors", "config.json"
DAMAGES: dict[str, tuple[Damage, type[ParamInitError], list[str]]] = {
    "no weights": (remove(WEIGHTS), PredictorNotFoundError, [WEIGHTS]),
    "empty weights": (cut(WEIGHTS, 0), CheckpointError, [WEIGHTS, "truncated"]),
    "truncated in the header": (cut(WEIGHTS, 0.01), CheckpointError, [WEIGHTS, "truncated"]),
    "truncated in the data": (cut(WEIGHTS, 0.9), CheckpointError, [WEIGHTS, "truncated"]),
    "oversized header": (write(WEIGHTS, b"\xff" * 7 + b"\x7f" + b"{" * 64), CheckpointError, [WEIGHTS]),
    "other network": (other_network, CheckpointError, [WEIGHTS, "2 unexpected", "weights and config.json"]),
    "NaN": (spoiled, CheckpointError, [WEIGHTS, "NaN or infinite", "embed.weight"]),
    "no config": (remove(CONFIG), PredictorNotFoundError, ["config.json", "save_pretrained"]),
    "truncated config": (cut(CONFIG, 0.5), CheckpointError, [CONFIG, "not valid JSON"]),
    "config of another kind": (write(CONFIG, b'{"architecture": "resnet18"}'), CheckpointError, ["paraminit_type"]),
    "endless nesting": (write(CONFIG, b"[" * 100_000), CheckpointError, [CONFIG, "not valid JSON"]),
    "endless number": (write(CONFIG, b'{"format_version": %s}' % (b"9" * 9_999)), CheckpointError, [CONFIG]),
    "newer format": (edit(format_version=2), CheckpointError, ["expected format_version 1, found 2"]),
    "other method": (edit(paraminit_type="ghn2"), CheckpointError, ["'ghn2'", "'ghn3'"]),
    "unknown method": (edit(paraminit_type="ghn9"), UnknownInitializerError, ["'ghn9'", "Known:"]),
    "method that is none": (edit(paraminit_type="predictor"), ParamInitError, ["'predictor'"]),
    "other width": (edit(architecture={"hidden_dim": 16}), CheckpointError, [WEIGHTS, "shape", "instead of"]),
    "more layers": (edit(architecture={"num_layers": 2}), CheckpointError, [WEIGHTS, "missing: gnn.1."]),
    "endless layers": (edit(architecture={"num_layers": 10**6}), CheckpointError, ["num_layers=1000000", "at most"]),
    "endless width": (edit(architecture={"hidden_dim": 2**62}), CheckpointError, ["hidden_dim", "at most"]),
    "unknown entry": (edit(architecture={"hiden_dim": 8}), CheckpointError, ["hiden_dim", "hidden_dim"]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders(case: str, folder: Path, model: nn.Module) -> None:
    damage, error, parts = DAMAGES[case]
    damage(folder)
    with refusal(error, *parts, model=model, files=folder):
        hf_paraminit.initialize(model, f"local-dir:{folder}")
    with refusal(error, *parts, files=folder):
        hf_paraminit.load_predictor(folder)


def test_a_repaired_folder_works_at_once(folder: Path, model: nn.Module) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    cut(WEIGHTS, 0.9)(folder)
    with pytest.raises(CheckpointError):
        hf_paraminit.initialize(model, f"local-dir:{folder}")
    (folder / WEIGHTS).write_bytes(whole)
    assert hf_paraminit.initialize(model, f"local-dir:{folder}").coverage_tensors == 1


def test_a_bit_flip_in_the_header_never_gives_other_tensors(folder: Path, tiny: GHN) -> None:
    """Values carry no checksum, but names, shapes, types and places do not survive a flip unnoticed."""
    raw = (folder / WEIGHTS).read_bytes()
    header_size = int.from_bytes(raw[:8], "little")
    expected = tiny.state_dict()
    refused = 0
    for position in random.Random(0).sample(range(8 * (8 + header_size)), 150):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        (folder / WEIGHTS).write_bytes(damaged)
        try:
            read = GHN.from_pretrained(folder).state_dict()
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())
    assert refused > 100


@pytest.mark.parametrize("flip", [0.3, 0.6, 0.9])
def test_a_bit_flip_in_a_published_file(flip: float, tiny: GHN, tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "ghn.pt"
    torch.save({"state_dict": tiny.state_dict()}, path)
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * flip)] ^= 0x40
    path.write_bytes(raw)
    with refusal(CheckpointError, str(path), model=model, files=tmp_path):
        hf_paraminit.initialize(model, hf_paraminit.load_predictor(path))


# Models


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    with refusal(PredictionError, "Sequential has no parameters", model=model):
        hf_paraminit.initialize(model, "ghn3")


def test_a_model_whose_forward_pass_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(10, 2))
    with refusal(TracingError, "Sequential", "(2, 3, 224, 224)", "input_size", model=model):
        hf_paraminit.initialize(model, "ghn3")


def test_frozen_parameters_are_predicted_and_stay_frozen(model: nn.Module) -> None:
    trainable = timm.create_model("test_resnet", init="ghn3")
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert set(flags.values()) == {True, False}
    report = hf_paraminit.initialize(model, "ghn3")
    assert report.coverage_tensors == 1
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trainable.parameters(), strict=True))


def test_a_model_on_meta_is_left_there() -> None:
    with pytest.warns(UserWarning, match="on the meta device"):
        model = timm.create_model("test_resnet", device="meta", init="ghn3")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model._hf_paraminit.predicted == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_get_the_same_prediction_cast(dtype: torch.dtype) -> None:
    single = timm.create_model("test_vit", init="ghn3")
    other = timm.create_model("test_vit", dtype=dtype, init="ghn3")
    for name in single._hf_paraminit.predicted:
        assert other.get_parameter(name).dtype == dtype
        assert torch.equal(other.get_parameter(name), single.get_parameter(name).to(dtype))


def test_nan_in_the_model_does_not_reach_the_prediction(model: nn.Module) -> None:
    """Neither weights nor buffers are read; buffers are the user's and keep their NaN."""
    expected = timm.create_model("test_resnet", init="ghn3")
    with torch.no_grad():
        for tensor in (*model.parameters(), model.bn1.running_mean):
            tensor.fill_(torch.nan)
    hf_paraminit.initialize(model, "ghn3")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    assert model.bn1.running_mean.isnan().all()


def test_nan_images_leave_the_statistics_of_a_predicted_model() -> None:
    model = timm.create_model("test_resnet", init="ghn3")
    with refusal(PredictionError, "NaN", "check the images", model=model):
        hf_paraminit.recalibrate_batchnorm(model, [torch.full((2, 3, 32, 32), torch.nan)])


# Predictors that misbehave


def wrong_shape(values: dict[str, Tensor]) -> None:
    values["fc.weight"] = values["fc.weight"].T


def not_a_number(values: dict[str, Tensor]) -> None:
    values["conv1.0.weight"][0, 0, 1, 1] = torch.nan


def infinite(values: dict[str, Tensor]) -> None:
    values["fc.bias"][5] = torch.inf


def all_of_them(values: dict[str, Tensor]) -> None:
    for spoil in (wrong_shape, not_a_number, infinite):
        spoil(values)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (wrong_shape, ["Faults: 1", "fc.weight", "(1000, ", "nothing was written"]),
        (not_a_number, ["Faults: 1", "conv1.0.weight", "NaN"]),
        (infinite, ["Faults: 1", "fc.bias", "infin"]),
        (all_of_them, ["Faults: 3", "fc.weight", "conv1.0.weight", "fc.bias"]),
    ],
)
def test_a_spoiled_prediction(spoil: Callable[[dict[str, Tensor]], None], parts: list[str], tiny: GHN) -> None:
    predictor = hf_paraminit.load_predictor(tiny.state_dict(), config=tiny.config.to_dict())

    def spoiled_ghn(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        values = predictor.predict(model, names)
        spoil(values)
        return values

    model = timm.create_model("test_resnet")
    assert "conv1.0.weight" in dict(model.named_parameters())
    with refusal(PredictionError, "spoiled_ghn", *parts, model=model):
        hf_paraminit.initialize(model, spoiled_ghn)


def test_a_hypernetwork_that_computes_nan(tiny: GHN, model: nn.Module) -> None:
    predictor = hf_paraminit.load_predictor(tiny.state_dict(), config=tiny.config.to_dict())
    with torch.no_grad():
        predictor.predictor.gnn[0].attn.to_qkv.weight.fill_(torch.inf)
    with refusal(PredictionError, "ghn3", "NaN", "and ", " more", model=model):
        hf_paraminit.initialize(model, predictor)


# A full disk


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files cannot grow beyond this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_a_predictor_is_saved(tiny: GHN, folder: Path, tmp_path: Path) -> None:
    bigger = GHN.new(GHNConfig(**{**TINY.to_dict(), "hidden_dim": 16}), seed=0)
    for output in (folder, tmp_path / "new"):
        with refusal(OutputError, str(output), "Nothing was changed", files=tmp_path), full_disk(10_000):
            bigger.save_pretrained(output)
