"""Random damage: whatever happens to a file, reading it gives tensors or a `CheckpointError`, and runs nothing."""

import argparse
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import joblib
import pytest
import torch

from hf_paraminit.errors import CheckpointError
from hf_paraminit.io.safe_load import read_checkpoint

CHECKPOINTS = sorted((Path(__file__).parents[1] / "golden" / "checkpoints").glob("*.pt"))
NUM_CASES = 200


def flip_bits(content: bytearray, generator: random.Random) -> None:
    for _ in range(generator.choice([1, 1, 1, 2, 8])):
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)


def truncate(content: bytearray, generator: random.Random) -> None:
    del content[generator.randrange(len(content)) :]


def overwrite(content: bytearray, generator: random.Random) -> None:
    length = generator.choice([1, 4, 8])
    start = generator.randrange(len(content))
    content[start : start + length] = generator.choice([b"\xff", b"\x00", b"R", b"(", b"."]) * length


def transplant(content: bytearray, generator: random.Random) -> None:
    """Repeat, remove or insert a piece of the file."""
    start, target = generator.randrange(len(content)), generator.randrange(len(content))
    piece = content[start : start + generator.randrange(1, 40)]
    content[target : target + generator.randrange(40)] = piece


DAMAGES = [flip_bits, truncate, overwrite, transplant]


def check_damaged(path: Path, original: bytes, seed: int, num_cases: int) -> int:
    """Read `num_cases` damaged versions; return how many were refused."""
    generator = random.Random(seed)
    refused = 0
    for case in range(num_cases):
        content = bytearray(original)
        DAMAGES[case % len(DAMAGES)](content, generator)
        path.write_bytes(content)
        try:
            checkpoint = read_checkpoint(path, max_bytes=16 << 20)
        except CheckpointError:
            refused += 1
            continue
        for tensor in checkpoint.state_dict.values():
            assert tensor.untyped_storage().nbytes() <= 16 << 20
            assert tensor.clone().shape == tensor.shape
        json.dumps([checkpoint.config, checkpoint.metadata])
    return refused


@pytest.mark.parametrize("sample", CHECKPOINTS, ids=lambda path: path.stem)
def test_damaged_samples(tmp_path: Path, sample: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused = check_damaged(tmp_path / "file", sample.read_bytes(), seed=1, num_cases=NUM_CASES)
    assert refused >= NUM_CASES // 4  # at the least each truncation
    assert capfd.readouterr() == ("", "")


def tiny_checkpoint() -> dict[str, object]:
    """Nearly all of its bytes are structure, so that damage hits it."""
    return {
        "state_dict": {"a": torch.ones(2, 1), "b": torch.nn.Parameter(torch.ones(1)), "c": torch.zeros(1).bool()},
        "config": {"max_shape": (8, 8), "hid": 8, "lr": 0.5, "ve": True},
        "args": argparse.Namespace(name="x", none=None),
        "optimzer": {"state": {0: torch.ones(1)}},
        "epoch": 3,
    }


def write_joblib(protocol: int, **options: object) -> Callable[[io.BytesIO], object]:
    return lambda buffer: joblib.dump(tiny_checkpoint(), buffer, protocol=protocol, **options)


def write_torch(**options: bool) -> Callable[[io.BytesIO], object]:
    return lambda buffer: torch.save(tiny_checkpoint(), buffer, **options)


WRITERS = {
    "joblib-2": write_joblib(2),
    "joblib-4": write_joblib(4),
    "joblib-5": write_joblib(5),
    "zlib": write_joblib(4, compress=3),
    "gzip": write_joblib(4, compress="gzip"),
    "xz": write_joblib(4, compress="xz"),
    "lzma": write_joblib(4, compress="lzma"),
    "bz2": write_joblib(4, compress="bz2"),
    "zip": write_torch(),
    "legacy": write_torch(_use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_structure(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    WRITERS[kind](buffer)
    (tmp_path / "file").write_bytes(buffer.getvalue())
    assert list(read_checkpoint(tmp_path / "file").state_dict) == ["a", "b", "c"]
    refused = check_damaged(tmp_path / "file", buffer.getvalue(), seed=2, num_cases=600)
    assert refused >= 300
    assert capfd.readouterr() == ("", "")
