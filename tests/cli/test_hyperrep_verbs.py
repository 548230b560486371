"""`paraminit train hyperrep` and `paraminit evaluate hyperrep`, from a zoo that the command line builds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import hf_paraminit
from hf_paraminit.cli.main import main
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.zoo_nets import ZooCNN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hyperrep")
    words = ["cnn-tiny", "--seeds", "8", "--epochs", "2", "--output", str(folder / "zoo")]
    assert main(["zoo", "build", *words]) == 0
    assert main(["train", "hyperrep", str(folder / "zoo"), "--output", str(folder / "run"), *TINY]) == 0
    return folder


TINY = [
    "--steps", "4", "--batch-size", "4", "--token-dim", "64", "--model-dim", "16", "--num-heads", "2",
    "--num-layers", "1", "--window", "20", "--halo", "2", "--cpu",
]  # fmt: skip


def test_the_trained_predictor_samples_and_says_how_it_was_made(folder: Path) -> None:
    model = ZooCNN("cnn-tiny", in_chans=3, img_size=16)
    report = hf_paraminit.initialize(model, f"local-dir:{folder / 'run' / 'predictor'}")
    assert not report.kept
    card = (folder / "run" / "predictor" / "README.md").read_text()
    assert "R2 of the reconstruction" in card
    assert "6 networks of a zoo of 8, trained on: synthetic" in card
    record = json.loads((folder / "run" / "predictor" / "config.json").read_text())
    assert record["metadata"]["training"]["steps"] == 4
    assert record["metadata"]["zoo"]["architecture"] == "cnn-tiny"


def test_populations_are_compared_with_copied_anchors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder / "run" / "predictor"), str(folder / "zoo"), "--networks", "2", "--epochs", "1"]
    words += ["--candidates", "4"]
    assert main(["evaluate", "hyperrep", *words, "--output", str(folder / "tables")]) == 0
    output = capsys.readouterr().out
    for label in (
        "random init", "copied anchors", "reconstructed anchors", "sampled, one anchor each", "sampled, uniform codes",
        "sampled and subsampled (SUB)", "sampled and bootstrapped (BOOT)", "the same, an anchor per token",
    ):  # fmt: skip
        assert f"\n{label}" in output
    assert "Epoch 0: a copied anchor is" in output
    record = json.loads((folder / "tables" / "populations.json").read_text())
    accuracies = {row["label"]: row["accuracy"]["0"][0] for row in record["populations"]}
    assert accuracies["copied anchors"] > accuracies["random init"]
    assert all(set(row["disagreement"]) == {"0", "15"} == set(row["ensemble"]) for row in record["populations"])
    assert set(record["properties"]) == {"test_accuracy", "epoch", "generalization_gap"}


def test_fewer_candidates_than_networks_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder / "run" / "predictor"), str(folder / "zoo"), "--networks", "3", "--candidates", "2"]
    assert main(["evaluate", "hyperrep", *words]) == 1
    assert "2 candidates cannot give 3 codes" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_one_predictor(folder: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    train = ["-m", "hf_paraminit", "train", "hyperrep", str(folder / "zoo"), "--output", str(tmp_path / "run"), *TINY]
    done = subprocess.run([*launch, *train], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Written to") == 1
    assert HyperRepresentation.from_pretrained(tmp_path / "run" / "predictor").config.num_anchors >= 1


def test_a_predictor_of_another_architecture_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["resnet18", "--init", "hyperrep-sample", "--init-kwargs"]
    settings = json.dumps({"source": str(folder / "run" / "predictor")})
    assert main(["init", *words, settings, "--output", str(folder / "model")]) == 1
    error = capsys.readouterr().err
    assert "cnn-tiny" in error
    assert "policy" in error


def test_a_folder_that_is_no_zoo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "hyperrep", str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")]) == 1
    assert "There is no model zoo" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
