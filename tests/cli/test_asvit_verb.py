"""`paraminit asvit search | grow | score`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_paraminit.cli.main import main

TOPOLOGY = "4,2,2|2,1,2|2,1,2|2,1,2|16"
QUICK = ("--rewards", "exp", "--img-size", "64", "--repeats", "1", "--width", "8")


def test_search_prints_and_keeps_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["asvit", "search", *QUICK, "--steps", "2", "--output", str(tmp_path / "run")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert found["failed"] == 0
    files = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"candidates/runs.jsonl", "steps/runs.jsonl", "settings.json", "search.png"} <= files
    assert main(words) == 0
    assert found["architecture"] in capsys.readouterr().out


def test_grow_prints_the_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["asvit", "grow", "--arch", TOPOLOGY, *QUICK, "--stop-params", "1.3", "--output", str(tmp_path)]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "M params  GMACs" in output
    assert "Ended: 1.3 M parameters reached." in output
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"]


def test_score_takes_names_and_strings(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["asvit", "score", f"{TOPOLOGY},8", "test_vit", "--img-size", "32", "--repeats", "1", "--batch", "2"]
    assert main([*words, "--curvature"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", f"{TOPOLOGY},8", "test_vit"]
    assert "ntk condition" in lines[0]
    assert main([*words[:3], "--img-size", "32", "--repeats", "1", "--no-ntk", "--json"]) == 0
    assert "ntk_condition" not in json.loads(capsys.readouterr().out)[f"{TOPOLOGY},8"]


def test_images_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(3):
        (tmp_path / "photos" / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (80, 70), (80 * index, 20, 200 - 60 * index))
        image.save(tmp_path / "photos" / f"class{index % 2}" / f"{index}.png")
    words = ["asvit", "search", "--img-size", "64", "--repeats", "1", "--width", "8", "--rewards", "ntk"]
    words += ["--steps", "1", "--output", str(tmp_path / "run")]
    assert main([*words, "--images", str(tmp_path / "photos")]) == 0
    assert "1 steps" in capsys.readouterr().out
    assert main([*words, "--images", str(tmp_path / "none")]) == 1
    assert "Cannot read images from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "4,2,2|2,1,2|2,x,2|2,1,2|16"], "S (splits) of stage 3"),
        (["score", "no_such_model"], "no_such_model"),
        (["score", "test_vit", "--device", "nowhere"], "--device 'nowhere'"),
        (["score", "test_vit", "--reinit", "no-such-start"], "no-such-start"),
        (["search", "--img-size", "100", "--output", "never"], "multiple of 32"),
        (["search", "--rewards", "speed", "--output", "never"], "rewards must be"),
        (["grow", "--arch", TOPOLOGY, "--max-params", "0.5", "--output", "never"], "Growth cannot start"),
        (["grow", "--arch", "8,2", "--output", "never"], "Cannot read the architecture"),
    ],
)
def test_failures_are_one_line(words, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["asvit", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("paraminit: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "never").exists()
