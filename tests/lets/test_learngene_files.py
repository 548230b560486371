"""Files of learngenes through `load_predictor` and `paraminit convert`, there and back."""

import json
from argparse import Namespace
from pathlib import Path

import lets_goldens
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_paraminit
from hf_paraminit.cli.main import main
from hf_paraminit.errors import CheckpointError
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.tleg import TLEG, TLEGConfig

HEADS = {case: {"num_heads": lets_goldens.meta(case)["learngene"]["num_heads"]} for case in lets_goldens.CASES}
OWN = LeTsConfig(
    embed_dim=64, num_heads=1, depth=2, aux_dim=128, pairs=adjacent_pairs(2, 2), repeat=3, patch_size=8, img_size=24,
    num_classes=5, class_token=True, gene_init="scaled",
)  # fmt: skip


def write_published(path: Path, tensors: dict[str, Tensor]) -> Path:
    """As stage 1 of the published code does."""
    torch.save({"model": tensors, "epoch": 299, "args": Namespace(src_arch="deit_small")}, path)
    return path


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def convert(*words: str) -> int:
    return main(["convert", *words])


@pytest.mark.parametrize("case", lets_goldens.CASES)
def test_published_files_are_loaded_by_their_names(case: str, tmp_path: Path) -> None:
    tensors = lets_goldens.tensors(f"{case}/learngene")
    path = write_published(tmp_path / "checkpoint.pth", tensors)
    save_file(tensors, tmp_path / "weights.safetensors")
    expected = LeTsGenerator.from_state_dict(tensors, HEADS[case])
    for source in (
        path,
        tmp_path / "weights.safetensors",
        tensors,
        {f"module.{name}": t for name, t in tensors.items()},
    ):
        initializer = hf_paraminit.load_predictor(source, config=HEADS[case])
        assert initializer.name == "learngene-LeTs"
        assert initializer.predictor.config == expected.config
        assert_equal(initializer.predictor.state_dict(), expected.state_dict())


def test_a_loaded_learngene_initializes_models(tmp_path: Path) -> None:
    LeTsGenerator.new(OWN, seed=0).save_pretrained(tmp_path / "own")
    config = {"depth": 3, "embed_dim": 128, "img_size": 24, "patch_size": 8}
    by_object = timm.create_model("vit_tiny_patch16_224", init=hf_paraminit.load_predictor(tmp_path / "own"), **config)
    by_name = timm.create_model("vit_tiny_patch16_224", init=f"local-dir:{tmp_path / 'own'}", **config)
    assert torch.equal(by_object.blocks[2].mlp.fc2.weight, by_name.blocks[2].mlp.fc2.weight)
    assert by_object._hf_paraminit.predictor == str(tmp_path / "own")


def test_bare_own_tensors_need_their_config(tmp_path: Path) -> None:
    generator = LeTsGenerator.new(OWN, seed=0)
    path = tmp_path / "weights.safetensors"
    save_file(generator.state_dict(), path)
    initializer = hf_paraminit.load_predictor(path, config=OWN.to_dict())
    assert_equal(initializer.predictor.state_dict(), generator.state_dict())
    with pytest.raises(CheckpointError, match="needs its config"):
        hf_paraminit.load_predictor(path)


@pytest.mark.parametrize("case", lets_goldens.CASES)
def test_a_published_file_comes_back_exactly(case: str, tmp_path: Path) -> None:
    tensors = lets_goldens.tensors(f"{case}/learngene")
    path = write_published(tmp_path / "checkpoint.pth", tensors)
    folder, back = tmp_path / "learngene", tmp_path / "back.pth"
    assert convert(str(path), "--config", json.dumps(HEADS[case]), "--output", str(folder)) == 0
    record = json.loads((folder / "config.json").read_text())
    assert record["paraminit_type"] == "learngene-LeTs"
    assert record["metadata"]["converted_from"] == "checkpoint.pth"
    assert convert(str(folder), "--published", "--output", str(back)) == 0
    assert_equal(torch.load(back, weights_only=True)["model"], tensors)
    assert (
        convert(str(path), "--config", json.dumps(HEADS[case]), "--published", "--output", str(tmp_path / "2.pth")) == 0
    )
    assert_equal(torch.load(tmp_path / "2.pth", weights_only=True)["model"], tensors)


def test_our_own_goes_through_the_published_names(tmp_path: Path) -> None:
    """Class token and three layers per block too, which the published nets do not have."""
    generator = LeTsGenerator.new(OWN, seed=0)
    again = LeTsGenerator.from_state_dict(generator.to_published())
    assert again.config == LeTsConfig.from_dict({**OWN.to_dict(), "gene_init": "published"})
    assert_equal(again.state_dict(), generator.state_dict())


def test_tleg_files_go_there_and_back(tmp_path: Path) -> None:
    network = TLEG(TLEGConfig(embed_dim=64, num_heads=1, img_size=32, patch_size=16, num_classes=3))
    path = write_published(tmp_path / "tleg.pth", network.to_published())
    assert hf_paraminit.load_predictor(path).name == "tleg"
    assert convert(str(path), "--output", str(tmp_path / "tleg")) == 0
    assert_equal(TLEG.from_pretrained(tmp_path / "tleg").state_dict(), network.state_dict())
    assert convert(str(tmp_path / "tleg"), "--published", "--output", str(tmp_path / "back.pth")) == 0
    assert_equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], network.to_published())


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert convert(*words) == 1
    return capsys.readouterr().err


def test_damaged_files_are_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = lets_goldens.tensors("case_a/learngene")
    heads, output = json.dumps(HEADS["case_a"]), tmp_path / "out"
    short = {name: tensor for name, tensor in tensors.items() if not name.endswith("trans_width_ffn.trans_weight")}
    one, other = "__sm_0_mlp_fc1_weight", "__sm_0_attn_q_weight"
    swapped = {**tensors, one: tensors[other], other: tensors[one]}
    for name, state in (("short.pth", short), ("swapped.pth", swapped)):
        path = write_published(tmp_path / name, state)
        assert "LeTs" in failing(capsys, str(path), "--config", heads, "--output", str(output))
    path = write_published(tmp_path / "whole.pth", tensors)
    assert '{"num_heads": 3}' in failing(capsys, str(path), "--output", str(output)), "widths show no heads of 64"
    path.write_bytes(path.read_bytes()[:-999])
    assert "whole.pth" in failing(capsys, str(path), "--config", heads, "--output", str(output))
    assert not output.exists()


def test_what_the_published_code_has_no_file_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ghn = GHN.new(GHNConfig(hidden_dim=8, num_heads=1, num_layers=1, max_shape=(8, 8, 3, 3), num_classes=4), seed=0)
    ghn.save_pretrained(tmp_path / "ghn")
    LeTsGenerator.new(OWN, seed=0).save_pretrained(tmp_path / "own")
    output = tmp_path / "out.pth"
    weights = tmp_path / "ghn" / "model.safetensors"
    assert load_file(weights)
    for words, message in (
        ((str(tmp_path / "ghn"), "--published"), "holds a ghn3"),
        ((str(weights), "--published"), "this is a ghn3"),
        ((str(tmp_path / "own"), "--published", "--config", "{}"), "config of its own"),
        ((str(tmp_path / "own"),), "with --published only"),
    ):
        assert message in failing(capsys, *words, "--output", str(output))
    assert not output.exists()
    assert "name a file" in failing(capsys, str(tmp_path / "own"), "--published", "--output", str(tmp_path))
