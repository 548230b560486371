"""`paraminit train hyperrep` and `paraminit evaluate hyperrep`, from a zoo that the command line builds."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_paraminit
from hf_paraminit.cli.evaluate import hyperrep as verb
from hf_paraminit.cli.main import INTERRUPTED, main
from hf_paraminit.evaluation import population
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.io.run_store import locked


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


class Interruption:
    """Counts what is computed, and interrupts it after some more cells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = {"learning_curve": 0, "accuracy": 0, "property_scores": 0}
        self.left = sys.maxsize
        for module, name in ((population, "learning_curve"), (population, "accuracy"), (verb, "property_scores")):
            self._watch(monkeypatch, module, name)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def _watch(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*words: Any, **settings: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.counts[name] += 1
            return original(*words, **settings)

        monkeypatch.setattr(module, name, call)


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    return Interruption(monkeypatch)


SMALL = ["--networks", "2", "--epochs", "1", "--candidates", "2"]


def evaluate(predictor: Path, zoo: Path, output: Path, *words: str) -> int:
    return main(["evaluate", "hyperrep", str(predictor), str(zoo), *SMALL, "--output", str(output), *words])


def test_a_run_interrupted_anywhere_goes_on_and_ends_the_same(
    folder: Path, tmp_path: Path, interruption: Interruption, capsys: pytest.CaptureFixture[str]
) -> None:
    place, draw = (folder / "run" / "predictor", folder / "zoo"), random.Random(0)
    assert evaluate(*place, tmp_path / "whole") == 0
    expected, total = capsys.readouterr().out, interruption.total
    codes = []
    while not codes or codes[-1] == INTERRUPTED:
        interruption.left = draw.randint(1, 20)
        codes.append(evaluate(*place, tmp_path / "parts"))
        assert (tmp_path / "parts" / "populations.json").exists() == (codes[-1] == 0)
    assert codes == [INTERRUPTED] * (len(codes) - 1) + [0]
    assert len(codes) > 2
    assert interruption.total == 2 * total  # nothing was computed twice
    assert capsys.readouterr().out == expected
    for name in ("populations.json", "runs.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_setting_or_predictor_computes_what_it_changes(
    folder: Path, tmp_path: Path, interruption: Interruption, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor, zoo, output = folder / "run" / "predictor", folder / "zoo", tmp_path / "tables"

    def computed(predictor: Path, *words: str) -> dict[str, int]:
        before = dict(interruption.counts)
        assert evaluate(predictor, zoo, output, *words) == 0
        return {name: count - before[name] for name, count in interruption.counts.items()}

    first = computed(predictor)
    table = capsys.readouterr().out
    assert first["learning_curve"] == 24
    assert first["property_scores"] == 1
    assert computed(predictor, "--learning-rate", "0.5") == {"learning_curve": 24, "accuracy": 0, "property_scores": 0}
    assert capsys.readouterr().out != table
    representation = HyperRepresentation.from_pretrained(predictor)
    with torch.no_grad():
        representation.autoencoder.detokenizer.bias.add_(0.1)
    representation.save_pretrained(tmp_path / "other")
    changed = computed(tmp_path / "other")
    assert changed["learning_curve"] == 20  # all but random starts and copies, which the predictor has no part in
    assert changed["accuracy"] > 0
    assert changed["property_scores"] == 1
    capsys.readouterr()
    assert computed(predictor) == dict.fromkeys(first, 0)
    assert capsys.readouterr().out == table


def test_two_runs_do_not_write_to_one_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        assert evaluate(folder / "run" / "predictor", folder / "zoo", tmp_path) == 1
    assert "Another run is writing to" in capsys.readouterr().err


def test_fewer_candidates_than_networks_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder / "run" / "predictor", folder / "zoo", tmp_path / "tables", "--networks", "3") == 1
    assert "the best 3 of 2 draws: --candidates" in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()


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
