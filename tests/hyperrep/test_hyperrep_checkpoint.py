"""Checkpoints of the published code: read in its containers, with its wrappers' prefixes, and never executed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.checkpoint import read_global_autoencoder, read_sequence_autoencoder

GOLDEN = Path(__file__).parents[1] / "golden" / "hyperrep"


def recorded(case: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    return json.loads((GOLDEN / f"{case}.json").read_text()), state, tensors


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.model."])
def test_a_published_sequence_autoencoder_is_read(tmp_path: Path, prefix: str) -> None:
    record, state, tensors = recorded("sane_ae/a_gpt2")
    named = {prefix + name: value for name, value in state.items()}
    torch.save({"model": named}, tmp_path / "state.pt")
    save_file(named, tmp_path / "state.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(record["config"]))
    for file in ("state.pt", "state.safetensors"):
        model = read_sequence_autoencoder(tmp_path / file, tmp_path / "config.json")
        codes, _ = model(tensors["in.x_i"], tensors["in.pos"])
        torch.testing.assert_close(codes, tensors["out.z_i"], atol=1e-5, rtol=1e-4)


def test_a_published_global_autoencoder_is_read_without_the_parts_of_its_loss(tmp_path: Path) -> None:
    record, state, tensors = recorded("hr_ae/a_token_tanh")
    stored = {**state, "projection_head.layers.0.weight": torch.zeros(2, 2)}
    torch.save(stored, tmp_path / "checkpoint.pt")
    model = read_global_autoencoder(tmp_path / "checkpoint.pt", record["config"], record["index_dict"])
    torch.testing.assert_close(model(tensors["in.x"])[0], tensors["out.z"], atol=1e-5, rtol=1e-4)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    record, state, _ = recorded("sane_ae/a_gpt2")
    del state["tokenizer.bias"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"(?s)state\.pt does not fit its configuration.*tokenizer\.bias"):
        read_sequence_autoencoder(tmp_path / "state.pt", record["config"])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read_sequence_autoencoder(tmp_path / "state.pt", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="missing keys"):
        read_sequence_autoencoder(tmp_path / "state.pt", {"ae:i_dim": 3})
    with pytest.raises(CheckpointError, match="transformer_type"):
        read_sequence_autoencoder(tmp_path / "state.pt", {**record["config"], "ae:transformer_type": "rnn"})
