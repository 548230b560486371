"""Weights files are checked against the network before they are used."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.io.safetensors_file import file_sha256, read_tensors, write_tensors


@pytest.fixture
def skeleton() -> dict[str, Tensor]:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_round_trip(path: Path, tensors: dict[str, Tensor], skeleton: dict[str, Tensor]) -> None:
    write_tensors(path, tensors, {"epoch": "3"})
    read = read_tensors(path, skeleton)
    assert list(read) == list(skeleton)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"epoch": "3", "format": "pt"}


def test_views_and_gradients_are_written_by_value(path: Path) -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    write_tensors(path, {"turned": weight.T, "spread": torch.ones(1, 2).expand(3, 2)})
    read = read_tensors(path, {"turned": torch.empty(6, 4), "spread": torch.empty(3, 2)})
    assert torch.equal(read["turned"], weight.detach().T)
    assert torch.equal(read["spread"], torch.ones(3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_floats_are_cast_up(
    path: Path, tensors: dict[str, Tensor], skeleton: dict[str, Tensor], dtype: torch.dtype
) -> None:
    stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_tensors(path, stored)
    read = read_tensors(path, skeleton)
    assert {name: tensor.dtype for name, tensor in read.items()} == {n: t.dtype for n, t in skeleton.items()}
    assert all(torch.equal(read[name], stored[name].to(read[name].dtype)) for name in read)
    with pytest.raises(CheckpointError, match=r"0.weight \(4, 3, 3, 3\) B?F16 instead of .* torch.float32"):
        read_tensors(path, skeleton, allow_cast_16bit=False)


def test_all_differences_are_named_at_once(path: Path, tensors: dict[str, Tensor], skeleton: dict[str, Tensor]) -> None:
    del tensors["0.bias"]
    tensors["extra"] = torch.zeros(2)
    tensors["1.weight"] = torch.zeros(5)
    tensors["1.bias"] = tensors["1.bias"].double()
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError) as raised:
        read_tensors(path, skeleton)
    message = str(raised.value)
    for part in (
        str(path),
        "1 missing: 0.bias (4,)",
        "1 unexpected: extra (2,)",
        "2 of another shape or dtype",
        "1.weight (5,) F32 instead of (4,) torch.float32",
        "1.bias (4,) F64 instead of (4,) torch.float32",
    ):
        assert part in message


def test_long_lists_are_cut(path: Path) -> None:
    write_tensors(path, {f"t{i}": torch.zeros(1) for i in range(500)})
    with pytest.raises(CheckpointError, match=r"500 unexpected.* and 490 more") as raised:
        read_tensors(path, {})
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(
    path: Path, tensors: dict[str, Tensor], skeleton: dict[str, Tensor], value: float
) -> None:
    tensors["0.weight"][1, 2, 0, 1] = value
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in 1 of 7 tensors: 0\.weight"):
        read_tensors(path, skeleton)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-5],
        lambda raw: raw + b"more",
        lambda raw: b"",
        lambda raw: raw[:7],
        lambda raw: struct.pack("<Q", 1 << 60) + raw[8:],
        lambda raw: raw[:8] + b"\xff" + raw[9:],
        lambda raw: b"\x80\x04\x95 a pickle, say",
        lambda raw: raw.replace(b'"F32"', b'"F99"', 1),
    ],
    ids=["truncated", "longer", "empty", "short", "huge header", "bit flip in header", "foreign", "unknown type"],
)
def test_damaged_file(
    path: Path, tensors: dict[str, Tensor], skeleton: dict[str, Tensor], damage: Callable[[bytes], bytes]
) -> None:
    write_tensors(path, tensors)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="paraminit convert"):
        read_tensors(path, skeleton)


def test_wrong_network_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    """A sparse file of 1 TiB: reading it would exhaust the memory of any test machine."""
    path = tmp_path / "huge.safetensors"
    size = 1 << 40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    with pytest.raises(CheckpointError, match="does not fit"):
        read_tensors(path, {"a": torch.empty(2)})


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(PredictorNotFoundError, match="no weights file"):
            read_tensors(path, {})


def test_values_read_may_be_changed_without_changing_the_file(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3)})
    digest = file_sha256(path)
    read_tensors(path, {"a": torch.empty(3)})["a"].zero_()
    assert file_sha256(path) == digest


def test_replacing_a_file_does_not_change_what_was_read(path: Path) -> None:
    save_file({"a": torch.ones(300_000)}, path)
    read = read_tensors(path, {"a": torch.empty(300_000)})
    write_tensors(path, {"a": torch.zeros(300_000)})
    assert read["a"].min() == 1


def test_sha256(path: Path) -> None:
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
