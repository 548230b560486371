"""Foreign checkpoints that are in order: recorded files, and what joblib and torch write today."""

import argparse
import ast
import collections
import dataclasses
import hashlib
import tracemalloc
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hf_paraminit
from hf_paraminit.errors import CheckpointError, PredictorNotFoundError, UnsafeFileError
from hf_paraminit.io.safe_load import read_checkpoint

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def small_state_dict() -> "collections.OrderedDict[str, torch.Tensor]":
    torch.manual_seed(0)
    return collections.OrderedDict((f"w{i}", torch.randn(3 + i, 5)) for i in range(4))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("name", "reference", "container"),
    [
        ("ghn3_micro_joblib", "ghn3_micro_joblib", "joblib"),
        ("ghn3_micro_joblib_zlib", "ghn3_micro_joblib", "joblib-zlib"),
        ("ghn3_micro_training", "ghn3_micro_training", "torch-zip"),
        ("ghn2_micro_torchsave", "ghn2_micro_torchsave", "torch-zip"),
        ("ghn2_micro_torchsave_with_optimizer", "ghn2_micro_after_step", "torch-zip"),
        ("ghn2_micro_torchsave_legacy", "ghn2_micro_after_step", "torch-legacy"),
    ],
)
def test_recorded_files_give_the_recorded_tensors(name: str, reference: str, container: str) -> None:
    path = CHECKPOINTS / f"{name}.pt"
    checkpoint = read_checkpoint(path)
    expected = load_file(CHECKPOINTS / f"{reference}.reference.safetensors")
    assert checkpoint.container == container
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.state_dict.keys() == expected.keys()
    assert_same({key: checkpoint.state_dict[key] for key in expected}, expected)


def test_config_and_metadata_are_plain_values() -> None:
    checkpoint = read_checkpoint(CHECKPOINTS / "ghn3_micro_training.pt")
    assert checkpoint.config is not None
    assert checkpoint.config["max_shape"] == [8, 8, 11, 11]
    assert checkpoint.config["is_ghn2"] is False
    assert checkpoint.metadata.keys() == {"epoch", "step", "args"}
    assert type(checkpoint.metadata["args"]) is dict
    assert checkpoint.metadata["args"]["lr"] == 0.0004


def test_misspelt_optimizer_is_dropped() -> None:
    checkpoint = read_checkpoint(CHECKPOINTS / "ghn2_micro_torchsave_with_optimizer.pt")
    assert checkpoint.metadata == {"epoch": 3}


def test_bare_state_dict_has_neither_config_nor_metadata() -> None:
    checkpoint = read_checkpoint(CHECKPOINTS / "ghn3_micro_joblib.pt")
    assert checkpoint.config is None
    assert checkpoint.metadata == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.container = "other"  # type: ignore[misc]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_joblib_protocols(tmp_path: Path, protocol: int) -> None:
    joblib.dump(small_state_dict(), tmp_path / "file", protocol=protocol)
    checkpoint = read_checkpoint(tmp_path / "file")
    assert checkpoint.container == "joblib"
    assert_same(checkpoint.state_dict, small_state_dict())


@pytest.mark.parametrize("compression", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_joblib_compressions(tmp_path: Path, compression: str) -> None:
    joblib.dump(small_state_dict(), tmp_path / "file", compress=(compression, 3))
    checkpoint = read_checkpoint(tmp_path / "file")
    assert checkpoint.container == f"joblib-{compression}"
    assert_same(checkpoint.state_dict, small_state_dict())


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_save_of_every_dtype(tmp_path: Path, zip_file: bool, protocol: int) -> None:
    torch.manual_seed(0)
    state_dict = {str(dtype): (torch.randn(3, 4) * 3).to(dtype) for dtype in DTYPES}
    state_dict["scalar"] = torch.tensor(7)
    state_dict["empty"] = torch.zeros(0, 3)
    torch.save(state_dict, tmp_path / "file", pickle_protocol=protocol, _use_new_zipfile_serialization=zip_file)
    assert_same(read_checkpoint(tmp_path / "file").state_dict, state_dict)


@pytest.mark.parametrize("zip_file", [True, False])
def test_views_parameters_and_shared_storages(tmp_path: Path, zip_file: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state_dict = {
        "whole": base,
        "transposed": base.T,
        "corner": base[1:3, 2:5],
        "strided": base[::2, ::3],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save({"state_dict": state_dict}, tmp_path / "file", _use_new_zipfile_serialization=zip_file)
    found = read_checkpoint(tmp_path / "file").state_dict
    assert_same(found, {name: tensor.detach() for name, tensor in state_dict.items()})
    assert found["corner"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()
    assert not found["parameter"].requires_grad


def test_tensors_do_not_touch_the_file(tmp_path: Path) -> None:
    joblib.dump(small_state_dict(), tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    tensors = read_checkpoint(tmp_path / "file").state_dict
    for tensor in tensors.values():
        assert tensor.data_ptr() % tensor.itemsize == 0  # joblib does not align the bytes
        tensor.zero_()
    assert (tmp_path / "file").read_bytes() == before


def test_numpy_scalars_and_tensors_are_left_out_of_the_metadata(tmp_path: Path) -> None:
    content = {
        "state_dict": small_state_dict(),
        "config": {"hid": 8, "score": np.float32(1.5), "nested": {"a": (1, [2.5, None, True])}},
        "losses": [np.float64(0.5), 0.25],
        "ema": torch.zeros(3),
        "args": argparse.Namespace(lr=0.1, sub=argparse.Namespace(x=1)),
        "raw": b"bytes",
        3: "number",
    }
    torch.save(content, tmp_path / "file")
    checkpoint = read_checkpoint(tmp_path / "file")
    assert checkpoint.config == {"hid": 8, "nested": {"a": [1, [2.5, None, True]]}}
    assert checkpoint.metadata == {"losses": [None, 0.25], "args": {"lr": 0.1, "sub": {"x": 1}}, "3": "number"}


def test_module_metadata_is_ignored(tmp_path: Path) -> None:
    state_dict = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert state_dict._metadata
    joblib.dump(state_dict, tmp_path / "file")
    assert_same(read_checkpoint(tmp_path / "file").state_dict, state_dict)


def test_no_second_copy_of_the_bytes_is_held(tmp_path: Path) -> None:
    """Python's own allocations stay small: tensors live in torch's memory, everything else is a view of the map."""
    state_dict = {f"w{i}": torch.zeros(1 << 20) for i in range(4)}
    joblib.dump(state_dict, tmp_path / "joblib")
    torch.save(state_dict, tmp_path / "zip")
    for name in ("joblib", "zip"):
        tracemalloc.start()
        read_checkpoint(tmp_path / name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20, f"{name}: {peak} bytes for a file of 16 MiB"


def test_unused_storages_are_not_read(tmp_path: Path) -> None:
    """The optimizer state of a training checkpoint may be damaged: nobody asked for it."""
    path = tmp_path / "file"
    marker = torch.full((64,), 123.0)
    torch.save({"state_dict": small_state_dict(), "optimizer": {"state": {0: marker}}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(marker.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert_same(read_checkpoint(path).state_dict, small_state_dict())


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PredictorNotFoundError, match=r"nothing\.pt"):
        read_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, world", "first bytes"),
        (b"\x04\x22\x4d\x18" + bytes(20), "lz4.*again without compression"),
        (b"\x80", "truncated"),
    ],
)
def test_unknown_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as info:
        read_checkpoint(tmp_path / "file")
    assert str(tmp_path / "file") in str(info.value)
    assert "safetensors" in str(info.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list"),
        ({"model": {"a": 1}}, "'model' of its state dict is a dict"),
        ({"state_dict": {}}, "empty"),
        ({"state_dict": {"a": torch.zeros(2), "b": 3}}, "'b' of its state dict is a int"),
        ({"state_dict": {"a": torch.zeros(2)}, "config": [1]}, "config is a list"),
    ],
)
def test_other_objects_are_named(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "file")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "file")


def test_size_limit(tmp_path: Path) -> None:
    torch.save(small_state_dict(), tmp_path / "file")
    with pytest.raises(UnsafeFileError, match="max_bytes=100"):
        read_checkpoint(tmp_path / "file", max_bytes=100)


def test_the_package_never_unpickles() -> None:
    """No module imports a library that unpickles, or lets torch do it without restriction."""
    files = sorted(Path(hf_paraminit.__file__).parent.rglob("*.py"))
    assert any(file.name == "safe_load.py" for file in files)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                roots = {module.partition(".")[0] for module in modules}
                if isinstance(node, ast.ImportFrom) and node.module == "joblib":  # workers, not files
                    assert {alias.name for alias in node.names} <= {"Parallel", "delayed"}, file
                    continue
                assert not roots & {"pickle", "_pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}, file
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), file
