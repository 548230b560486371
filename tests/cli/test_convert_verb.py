import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_paraminit
from hf_paraminit.cli.main import main
from hf_paraminit.ghn.model import GHN


@pytest.fixture
def foreign_file(tiny_ghn: GHN, tmp_path: Path) -> Path:
    path = tmp_path / "published.pt"
    torch.save({"state_dict": tiny_ghn.state_dict(), "epoch": 3}, path)
    return path


def test_a_foreign_checkpoint_becomes_a_predictor(
    foreign_file: Path, tiny_ghn: GHN, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["convert", str(foreign_file), "--output", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    sha256 = hashlib.sha256(foreign_file.read_bytes()).hexdigest()
    assert record["sha256"] == sha256
    assert record["num_parameters"] == sum(parameter.numel() for parameter in tiny_ghn.parameters())
    assert (record["paraminit_type"], record["dtype"]) == ("ghn3", "float32")
    config = json.loads((folder / "config.json").read_text())
    assert config["metadata"] == {"converted_from": "published.pt", "converted_from_sha256": sha256}
    found = GHN.from_pretrained(folder)
    assert found.config == tiny_ghn.config
    for name, tensor in tiny_ghn.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    initializer = hf_paraminit.load_predictor(folder)
    assert initializer.name == "ghn3"


def test_text_says_what_was_read(foreign_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(foreign_file), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert hashlib.sha256(foreign_file.read_bytes()).hexdigest() in out
    assert "hidden_dim           16" in out
    assert f'init="local-dir:{tmp_path / "out"}"' in out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights(dtype: str, foreign_file: Path, tiny_ghn: GHN, tmp_path: Path) -> None:
    assert main(["convert", str(foreign_file), "--output", str(tmp_path / "out"), "--dtype", dtype]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    found = GHN.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in tiny_ghn.state_dict().items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype)).float()), name


def test_a_config_says_what_shapes_cannot(tiny_ghn: GHN, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tiny_ghn.state_dict().items()}, path)
    config = {**tiny_ghn.config.to_dict(), "weight_norm": False}
    assert main(["convert", str(path), "--output", str(tmp_path / "out"), "--config", json.dumps(config)]) == 0
    assert GHN.from_pretrained(tmp_path / "out").config.weight_norm is False


def failing(words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["convert", *words, "--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("paraminit: error: ")
    assert len(err.splitlines()) == 1
    assert not output.exists()
    return err


def test_values_beyond_16_bit_are_refused(tiny_ghn: GHN, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: tensor.clone() for name, tensor in tiny_ghn.state_dict().items()}
    tensors["ln.bias"][0] = 1e5
    torch.save({"state_dict": tensors}, tmp_path / "large.pt")
    words = [str(tmp_path / "large.pt"), "--dtype", "float16"]
    assert "ln.bias hold values beyond the range" in failing(words, tmp_path / "out", capsys)


def test_damaged_missing_and_unfitting_files(
    foreign_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncated, other = tmp_path / "truncated.pt", tmp_path / "other.pt"
    truncated.write_bytes(foreign_file.read_bytes()[:-500])
    torch.save({"state_dict": {"conv.weight": torch.zeros(2, 2)}}, other)
    assert "truncated.pt" in failing([str(truncated)], tmp_path / "out", capsys)
    assert "not a checkpoint of a graph hypernetwork" in failing([str(other)], tmp_path / "out", capsys)
    assert "no checkpoint file" in failing([str(tmp_path / "absent.pt")], tmp_path / "out", capsys)
    words = [str(foreign_file), "--config", '{"hidden_dim": 32}']
    assert "do not fit" in failing(words, tmp_path / "out", capsys)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return exec, (f"open({str(self.mark)!r}, 'w')",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, mark = tmp_path / "bomb.pt", tmp_path / "executed"
    torch.save({"state_dict": Bomb(mark)}, path)
    failing([str(path)], tmp_path / "out", capsys)
    path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
    failing([str(path)], tmp_path / "out", capsys)
    assert not mark.exists()


def test_malformed_config_is_a_usage_error(foreign_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(foreign_file), "--output", str(tmp_path / "out"), "--config", "{"])
    assert exit_.value.code == 2
