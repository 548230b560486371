import csv
import json
import sys
from pathlib import Path

import pytest
import timm

from hf_paraminit.cli import coverage as verb
from hf_paraminit.cli.coverage_models import _SETTINGS, build, find_candidates
from hf_paraminit.cli.main import INTERRUPTED, main
from hf_paraminit.evaluation.coverage import Candidate, measure

image = pytest.importorskip("matplotlib.image")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure without starting processes, which tests/evaluation/test_coverage.py does."""

    def measured(waiting, jobs, work):
        yield from map(work, waiting)

    monkeypatch.setattr("hf_paraminit.evaluation.coverage._measured", measured)


def names_in(folder: Path) -> list[str]:
    with (folder / "coverage.csv").open(newline="") as file:
        return [row["model"] for row in csv.DictReader(file)]


def test_two_patterns_make_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["coverage", "test_resnet", "test_conv*", "--source", "timm", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    found = names_in(tmp_path / "out")
    assert found == sorted(["test_resnet", *timm.list_models("test_conv*")])
    page = (tmp_path / "out" / "README.md").read_text()
    assert "paraminit coverage test_resnet 'test_conv*' --source timm --output" in page
    assert f"timm: {len(found)} of {len(found)} models" in capsys.readouterr().out
    pixels = image.imread(tmp_path / "out" / "coverage.png")
    assert pixels.shape[0] > 600


def test_a_second_sweep_adds_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["coverage", "test_resnet", "--output", str(tmp_path)]) == 0
    measured = []
    monkeypatch.setattr(verb, "build", lambda candidate: measured.append(candidate.model) or build(candidate))
    assert main(["coverage", "test_resnet", "test_convnext", "--output", str(tmp_path)]) == 0
    assert measured == ["test_convnext"]
    assert names_in(tmp_path) == ["test_convnext", "test_resnet"]


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build_once(candidate: Candidate):
        if candidate.model == "test_vit":
            raise KeyboardInterrupt
        return build(candidate)

    monkeypatch.setattr(verb, "build", build_once)
    words = ["coverage", "test_resnet", "test_vit", "--output", str(tmp_path)]
    assert main(words) == INTERRUPTED
    assert "The same command goes on" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["coverage.jsonl"]
    monkeypatch.undo()
    assert len((tmp_path / "coverage.jsonl").read_text().splitlines()) == 2


def test_a_model_that_fails_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_none(candidate: Candidate):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(verb, "build", build_none)
    assert main(["coverage", "test_resnet", "--output", str(tmp_path)]) == 0
    assert "| test_resnet | timm | timm's own | RuntimeError: out of luck |" in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "coverage.png").exists()
    monkeypatch.setattr(verb, "build", build)
    assert main(["coverage", "test_resnet", "--retry-failed", "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "coverage.json").read_text())["summary"]["timm"]["ok"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet5O"], "matches 'resnet5O'. Did you mean 'resnet50'"),
        (["test_resnet", "VitForImageClassification2"], "Did you mean 'ViTForImageClassification'"),
        (["test_resnet", "--source", "transformers"], "No model of transformers matches 'test_resnet'"),
        (["test_resnet", "--init", "ghn33"], "Did you mean 'ghn3'"),
        (["test_resnet", "--init", "local-dir:/nowhere"], "/nowhere"),
    ],
)
def test_a_refusal_writes_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coverage", *words, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_the_user_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    assert main(["coverage", "test_resnet", "--output", str(tmp_path)]) == 1
    assert "name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["coverage", "test_resnet", "--output", str(tmp_path / "file")]) == 1
    assert "Could not write" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_without_matplotlib_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["coverage", "test_resnet", "--output", str(tmp_path / "out")]) == 1
    assert 'pip install "hf_paraminit[plots]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_other_settings_need_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coverage", "test_resnet", "--output", str(tmp_path)]) == 0
    before = (tmp_path / "coverage.csv").read_bytes()
    assert main(["coverage", "test_resnet", "--mode", "auto", "--output", str(tmp_path)]) == 1
    assert "mode was 'native', is 'auto'" in capsys.readouterr().err
    assert (tmp_path / "coverage.csv").read_bytes() == before


# --- Models of Transformers ------------------------------------------------------------------------------------------


def test_transformers_models_go_by_class_and_by_type() -> None:
    by_class = find_candidates(["vitfor*"], ["transformers"])
    assert {(found.model, found.head) for found in by_class} == {
        ("ViTForImageClassification", "image-classification"),
        ("ViTForMaskedImageModeling", "masked-image"),
    }
    assert find_candidates(["vit"], ["transformers"]) == by_class
    assert len(find_candidates(["*"], ["transformers"])) > 75
    known = {candidate.model for candidate in find_candidates(["*"], ["transformers"])}
    assert known >= _SETTINGS.keys()


@pytest.mark.parametrize(
    "name",
    [
        "ConvNextBackbone",
        "DeiTForImageClassificationWithTeacher",
        "ImageGPTForImageClassification",
        "ShieldGemma2ForImageClassification",
        "TimmBackbone",
        "UVDocBackbone",
        "ViTForMaskedImageModeling",
    ],
)
def test_heads_and_inputs_of_every_kind(name: str, tiny_ghn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_paraminit.evaluation.coverage.find_hypernetwork", lambda init: tiny_ghn)
    (candidate,) = find_candidates([name], ["transformers"])
    record = measure(candidate, build, init="tiny", mode="native")
    assert record.error == ""
    assert record.share > 0.95
