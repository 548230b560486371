"""`paraminit zoo`: build, look at, export and import a zoo; what a user can get wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_paraminit.cli.main import main
from hf_paraminit.cli.zoo_networks import ZooNetwork
from hf_paraminit.errors import ParamInitError
from hf_paraminit.hyperrep.zoo import Zoo

SMALL = ("--data", "synthetic", "--img-size", "16", "--epochs", "2", "--seeds", "3")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "built"
    grid = '{"learning_rate": [1e-3, 4e-3], "activation": ["relu"]}'
    assert main(["zoo", "build", "cnn-tiny", *SMALL, "--grid", grid, "--output", str(folder)]) == 0
    return folder


def test_build_and_info(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "info", str(built), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["architecture"] == "cnn-tiny"
    assert record["data"] == "synthetic"
    assert sum(record["models"].values()) == 6
    assert record["checkpoints"] == 12
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    assert 0 < record["epochs"][1]["test_accuracy"]["mean"] < 1
    assert record["settings"]["learning_rate"] == [1e-3, 4e-3]
    assert record["faults"] == []
    assert main(["zoo", "info", str(built), "--check", "--max-abs", "1e-3"]) == 0
    text = capsys.readouterr().out
    assert "0 models of cnn-tiny on synthetic" in text
    assert "Fault: model-00000 at epoch 1 has a weight of magnitude" in text


def test_the_card_rebuilds_the_network(built: Path) -> None:
    zoo = Zoo.open(built)
    model = ZooNetwork.of_card(zoo.card)()
    model.load_state_dict(zoo.state_dict(0))
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ParamInitError, match="does not say how to build a x"):
        ZooNetwork.of_card({"architecture": "x"})


def test_the_same_command_finishes_nothing_twice(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in built.glob("data/*")}
    grid = '{"learning_rate": [1e-3, 4e-3], "activation": ["relu"]}'
    assert main(["zoo", "build", "cnn-tiny", *SMALL, "--grid", grid, "--output", str(built)]) == 0
    assert {path: path.stat().st_mtime_ns for path in built.glob("data/*")} == times
    assert f"Written to {built}." in capsys.readouterr().out
    assert main(["zoo", "build", "cnn-tiny", *SMALL, "--output", str(built)]) == 1
    assert "holds a zoo with other members" in capsys.readouterr().err


def test_export_and_import(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "export", str(built), "--output", str(tmp_path / "published")]) == 0
    assert "12 checkpoints of 6 models written" in capsys.readouterr().out
    words = ["zoo", "import", str(tmp_path / "published"), "--output", str(tmp_path / "zoo"), "--json"]
    network = ["--model", "cnn-tiny", "--in-chans", "3", "--img-size", "16", "--model-kwargs", '{"activation": "relu"}']
    assert main([*words, *network]) == 0
    assert json.loads(capsys.readouterr().out)["permutations"] == {"P0": 8, "P2": 6, "P4": 16}
    first, second = Zoo.open(built), Zoo.open(tmp_path / "zoo")
    assert all(torch.equal(a, b) for a, b in zip(first.stacked().values(), second.stacked().values(), strict=True))
    path = tmp_path / "published" / "model-00001" / "checkpoint_000002" / "checkpoints"
    path.write_bytes(b"nothing")
    words[4] = str(tmp_path / "other")
    assert main(words) == 1
    assert "model-00001" in capsys.readouterr().err
    assert main([*words, "--skip-faulty"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"][0].startswith("model-00001: could not read")


def test_a_network_of_timm(tmp_path: Path) -> None:
    kwargs = '{"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}'
    words = ["--seeds", "1", "--epochs", "1", "--img-size", "16", "--model-kwargs", kwargs, "--save-epochs", "0,1"]
    assert main(["zoo", "build", "resnet18", *words, "--output", str(tmp_path / "zoo")]) == 0
    zoo = Zoo.open(tmp_path / "zoo")
    assert [row.epoch for row in zoo.rows] == [0, 1]
    weights = load_file(tmp_path / "zoo" / "data" / "model-00000" / "epoch-0001.safetensors")
    assert int(weights["bn1.num_batches_tracked"]) == 15
    ZooNetwork.of_card(zoo.card)().load_state_dict(weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "cnn-tny"], "There is no network 'cnn-tny'. Did you mean 'cnn-tiny'"),
        (["build", "cnn-tiny", "--img-size", "20"], "size must be a multiple of 8"),
        (["build", "cnn-tiny", "--grid", '{"learning_rate": 3}'], "learning_rate of its grid need a list"),
        (["build", "cnn-tiny", "--grid", '{"colour": ["red"]}'], "Could not build 'cnn-tiny'"),
        (["build", "cnn-tiny", "--epochs", "2", "--save-epochs", "1,5"], "save_epochs must ascend within 0..2"),
        (["import", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", *words, "--output", str(tmp_path / "zoo")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()


def test_what_is_no_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "info", str(tmp_path / "nothing")]) == 1
    assert "There is no model zoo" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["zoo", "build", "cnn-tiny", "--save-epochs", "1,x", "--output", "zoo"])
    assert exit_.value.code == 2
