"""`paraminit train scales`, without its search, which takes minutes."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch

import hf_paraminit
from hf_paraminit.cli.benchmark import training_fingerprints
from hf_paraminit.cli.main import main
from hf_paraminit.cli.train.scales import KINDS, _cheapest, _drawn, _kind_of, _taught_networks, _untrained
from hf_paraminit.deepnets.families import FAMILIES
from hf_paraminit.evaluation.fingerprint import fingerprint, seen_in_training
from hf_paraminit.evaluation.hosts import build_network
from hf_paraminit.evaluation.nets import ALL_NETS


@pytest.fixture
def scales(tmp_path: Path) -> Path:
    path = tmp_path / "known.json"
    path.write_text(json.dumps({kind: {"kernel": 2.0, "classifier": 0.5} for kind in KINDS}))
    return path


def test_known_scales_are_taught_and_the_predictor_works(tmp_path: Path, scales: Path) -> None:
    output = tmp_path / "run"
    command = ["train", "scales", "--output", str(output), "--scales", str(scales), "--networks", "1", "--cpu"]
    assert main([*command, "--steps", "2", "--meta-batch", "2"]) == 0
    assert json.loads((output / "scales.json").read_text()) == json.loads(scales.read_text())
    model = timm.create_model("test_resnet", num_classes=7)
    report = hf_paraminit.initialize(model, f"local-dir:{output / 'predictor'}")
    assert set(report.predicted) == {name for name, _ in model.named_parameters()}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_run_with_other_scales_is_refused(tmp_path: Path, scales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    command = ["train", "scales", "--output", str(output), "--networks", "1", "--steps", "1", "--cpu"]
    assert main([*command, "--scales", str(scales)]) == 0
    other = tmp_path / "other.json"
    other.write_text(json.dumps({kind: {} for kind in KINDS}))
    assert main([*command, "--scales", str(other), "--steps", "2"]) != 0
    assert "scales" in capsys.readouterr().err


WRONG_KINDS: list[dict[str, object]] = [{"kernel": -1}, {"colour": 1}, {"kernel": "big"}]
WRONG_FILES = ["", "[]", '{"residual": {}}', *(json.dumps(dict.fromkeys(KINDS, wrong)) for wrong in WRONG_KINDS)]


@pytest.mark.parametrize("content", WRONG_FILES)
def test_scales_that_are_none(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "known.json"
    path.write_text(content)
    assert main(["train", "scales", "--output", str(tmp_path / "run"), "--scales", str(path)]) != 0
    assert "--scales" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_family_has_a_kind() -> None:
    for family in FAMILIES:
        if family != "inception_next":  # too large for the pool
            assert _kind_of(family, torch.nn.Sequential()) in KINDS


def test_the_cheapest_plain_network_has_no_norms() -> None:
    network = _cheapest("vgg", "plain", seed=0)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())


def test_networks_of_training_can_be_drawn_again() -> None:
    arguments = argparse.Namespace(networks=1, seed=3)
    taught = _taught_networks(_untrained(), {kind: {} for kind in KINDS}, arguments)
    again = [network for kind in KINDS for _, network in _drawn(kind, 1, 3)]
    shapes = [{name: tuple(p.shape) for name, p in network.named_parameters()} for network in again]
    assert [one.shapes for one in taught] == shapes


@pytest.mark.slow
def test_no_benchmark_network_was_searched_or_taught() -> None:
    trained = training_fingerprints()
    assert len(trained) == len(KINDS) * 60 + sum(len(families) for families, *_ in KINDS.values())
    for net in ALL_NETS.values():
        evaluated = fingerprint(build_network(net, num_classes=10, in_chans=3, img_size=32))
        assert not seen_in_training(evaluated, trained), net.name
