"""The stored form of predictors: what is written, what is read back, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_paraminit
from hf_paraminit.errors import (
    CheckpointError,
    OutputError,
    PredictorNotFoundError,
    UnknownInitializerError,
    UnsafeFileError,
)
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
CONFIG = GHNConfig(hidden_dim=8, num_layers=2, num_heads=2, max_shape=(8, 12, 11, 11), num_classes=10)


@pytest.fixture
def ghn() -> GHN:
    network = GHN(CONFIG)
    network.metadata = {"training": {"data": "synthetic", "steps": 5}}
    return network


@pytest.fixture
def folder(ghn: GHN, tmp_path: Path) -> Path:
    ghn.save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "config.json").read_text())
    change(record)
    (folder / "config.json").write_text(json.dumps(record))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# Round trips


def test_folder_round_trip(ghn: GHN, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    read = GHN.from_pretrained(folder)
    assert read.config == CONFIG
    assert read.metadata == ghn.metadata
    assert not read.training
    assert list(read.state_dict()) == list(ghn.state_dict())
    for name, tensor in ghn.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert read.provenance["predictor"] == str(folder)
    assert len(str(read.provenance["sha256"])) == 64


@pytest.mark.parametrize("cast", [GHN.half, GHN.bfloat16])
def test_16_bit_folder_reads_as_float32(ghn: GHN, tmp_path: Path, cast: Callable[[GHN], GHN]) -> None:
    full_size = sum(tensor.nbytes for tensor in ghn.state_dict().values())
    cast(ghn).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * full_size
    read = GHN.from_pretrained(tmp_path)
    for name, tensor in ghn.state_dict().items():
        assert read.state_dict()[name].dtype == torch.float32
        assert torch.equal(read.state_dict()[name], tensor.float())


def test_config_file_says_what_the_predictor_is(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    assert record["paraminit_type"] == "ghn3"
    assert record["format_version"] == 1
    assert record["paraminit_version"] == hf_paraminit.__version__
    assert GHNConfig.from_dict(record["config"]) == CONFIG


def test_saving_twice_replaces_the_first(ghn: GHN, folder: Path) -> None:
    with torch.no_grad():
        ghn.ln.bias.fill_(3)
    ghn.save_pretrained(folder)
    assert bool((GHN.from_pretrained(folder).ln.bias == 3).all())


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    random_state = torch.get_rng_state()
    GHN.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("kind", ["folder", "text", "local-dir"])
def test_ways_to_name_a_folder(folder: Path, kind: str) -> None:
    source = {"folder": folder, "text": str(folder), "local-dir": f"local-dir:{folder}"}[kind]
    assert GHN.from_pretrained(source).config == CONFIG


# Files of published code


@pytest.mark.parametrize(
    ("name", "reference", "initializer"),
    [
        ("ghn3_micro_joblib", "ghn3_micro_joblib", "ghn3"),
        ("ghn3_micro_joblib_zlib", "ghn3_micro_joblib", "ghn3"),
        ("ghn3_micro_training", "ghn3_micro_training", "ghn3"),
        ("ghn2_micro_torchsave", "ghn2_micro_torchsave", "ghn2"),
        ("ghn2_micro_torchsave_with_optimizer", "ghn2_micro_after_step", "ghn2"),
        ("ghn2_micro_torchsave_legacy", "ghn2_micro_after_step", "ghn2"),
    ],
)
def test_published_containers(name: str, reference: str, initializer: str, tmp_path: Path) -> None:
    read = GHN.from_pretrained(CHECKPOINTS / f"{name}.pt")
    expected = GHN.from_state_dict(load_file(CHECKPOINTS / f"{reference}.reference.safetensors"))
    assert read.paraminit_type == initializer
    assert read.config == expected.config
    for key, tensor in expected.state_dict().items():
        assert torch.equal(read.state_dict()[key], tensor), key
    assert read.metadata["converted_from"] == f"{name}.pt"
    read.save_pretrained(tmp_path)
    again = GHN.from_pretrained(tmp_path)
    assert again.config == read.config
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in read.state_dict().items())


def test_bare_safetensors(tmp_path: Path, ghn: GHN) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(ghn.state_dict(), path)
    assert GHN.from_pretrained(path).config == CONFIG
    assert GHN.from_file(path, CONFIG.to_dict()).config == CONFIG
    with pytest.raises(CheckpointError, match="do not fit"):
        GHN.from_file(path, {**CONFIG.to_dict(), "num_layers": 3})


@pytest.mark.parametrize("name", ["malicious_print_joblib", "malicious_nested_joblib", "malicious_print_torchsave"])
def test_files_with_code_are_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsafeFileError, match="Nothing of it was executed"):
        GHN.from_pretrained(CHECKPOINTS / f"{name}.pt")
    assert "CODE EXECUTED" not in "".join(capfd.readouterr())


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format_version=2), "format_version 1, found 2"),
        (lambda record: record.pop("format_version"), "format_version"),
        (lambda record: record.pop("paraminit_type"), "paraminit_type"),
        (lambda record: record.update(paraminit_type=3), "paraminit_type"),
        (lambda record: record.update(paraminit_type="ghn2"), "'ghn2'.*'ghn3'"),
        (lambda record: record.update(config=[1]), "config"),
        (lambda record: record["config"].update(hidden_dim=16), "does not fit"),
        (lambda record: record["config"].update(num_layers=3), "gnn.2.ln1.weight"),
        (lambda record: record["config"].update(hidden_dim=6), "multiple of 4"),
        (lambda record: record["config"].update(heads=2), "unknown keys"),
        (lambda record: record["config"].update(max_shape="large"), "max_shape"),
    ],
)
def test_tampered_config_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null"])
def test_config_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["ln.weight"].fill_(torch.nan), r"NaN.*ln\.weight"),
        (lambda tensors: tensors["embed.weight"][0].fill_(torch.inf), r"embed\.weight"),
        (lambda tensors: tensors.pop("ln.bias"), r"missing: ln\.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda tensors: tensors.update({"ln.bias": torch.zeros(9)}), r"ln\.bias"),
        (lambda tensors: tensors.update({"ln.bias": torch.zeros(8, dtype=torch.int64)}), r"ln\.bias"),
    ],
)
def test_damaged_weights_are_refused(folder: Path, change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        GHN.from_pretrained(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folder_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(PredictorNotFoundError, match=missing):
        GHN.from_pretrained(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictorNotFoundError, match="No predictor at"):
        GHN.from_pretrained(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(UnknownInitializerError, match="hf-hub"):
        GHN.from_pretrained("ftp:somewhere")


def test_unwritable_place_leaves_nothing(ghn: GHN, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises((OutputError, OSError)):
        ghn.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"


# The Hub


def test_hub_repositories_and_files(hub: Any, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = hub.add("me/predictor", files)
    official = hub.add("lab/ghn3", {"ghn3micro.pt": (CHECKPOINTS / "ghn3_micro_joblib.pt").read_bytes()})
    shutil.rmtree(folder)
    done = hub.run(
        "from hf_paraminit import GHN\n"
        "for source, options in (('me/predictor', {}), ('hf-hub:me/predictor@main', {}),\n"
        "                        ('lab/ghn3', {'filename': 'ghn3micro.pt'})):\n"
        "    network = GHN.from_pretrained(source, **options)\n"
        "    print(network.config.hidden_dim, network.provenance['predictor'], network.provenance['revision'])\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    own = f"8 me/predictor {commit}"
    assert done.stdout.splitlines() == [own, own, f"8 lab/ghn3/ghn3micro.pt {official}"]
