"""The As-ViT studies run, go on where they stopped, and compute what their tables say."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_paraminit.asvit.architecture import Architecture

expansion = pytest.importorskip("benchmarks.asvit_expansion")  # where pytest is run as a module
ranking = pytest.importorskip("benchmarks.asvit_ranking")
study = pytest.importorskip("benchmarks.study")
ROOT = Path(__file__).parents[1]


def run(script: str, folder: Path) -> str:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--quick", "--seeds", "1", "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_ranking(tmp_path: Path) -> None:
    output = run("asvit_ranking", tmp_path)
    with (tmp_path / "networks.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["set"] for line in lines] == [title for title in ranking.SETS for _ in range(4)]
    assert all(float(line["length distortion, ghn3"]) > 0 for line in lines)
    assert "| topologies of one size | NTK condition, ghn3 |" in output
    kept = (tmp_path / "runs.jsonl").read_bytes()
    assert run("asvit_ranking", tmp_path) == output
    assert (tmp_path / "runs.jsonl").read_bytes() == kept  # nothing was computed twice


@pytest.mark.slow
def test_tokenization(tmp_path: Path) -> None:
    output = run("asvit_tokenization", tmp_path)
    assert "As-ViT: stride 16 for 1 epochs (" in output
    records = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    spent = {(record["model"], record["way"]): record["spent"] for record in records}
    for model in ("As-ViT", "ViT"):
        assert spent[model, "progressive"] < spent[model, "own tokens"]
        assert spent[model, "own tokens, equal cost"] < spent[model, "own tokens"]
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_expansion(tmp_path: Path) -> None:
    output = run("asvit_expansion", tmp_path)
    assert "| donor goes on | " in output
    (record,) = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert record["handed on"]["0"] == pytest.approx(record["donor"]["5"], abs=15)


def test_sampled_networks_differ_and_repeat() -> None:
    assert ranking.topologies(5) == ranking.topologies(5)
    one_size = [Architecture.parse(arch) for arch in ranking.topologies(32)]
    assert len(set(map(str, one_size))) == 32
    assert {(arch.depths, arch.width) for arch in one_size} == {((1, 1, 1, 1), 8)}
    assert len({(arch.depths, arch.width) for arch in map(Architecture.parse, ranking.sizes(32))}) > 10


def test_taus_are_oriented_and_bounded() -> None:
    accuracies = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0]
    scores = {"parameters": [10, 20, 30, 40, 50, 60], "NTK condition": [10, 20, 30, 40, 50, 60]}
    found = ranking.taus(scores, accuracies)
    assert found["parameters"][0] == pytest.approx(1)
    assert found["NTK condition"][0] == pytest.approx(-1)  # smaller is better
    draws = found["parameters"][1]
    assert np.nanmin(draws) == pytest.approx(1)
    mixed = ranking.taus({"parameters": [10, 30, 20, 50, 40, 60]}, accuracies)["parameters"]
    assert mixed[0] == pytest.approx(1 - 2 * 2 / 15)  # two of fifteen pairs are out of order
    low, high = np.nanquantile(mixed[1], [0.025, 0.975])
    assert -1 <= low < mixed[0] < high <= 1


def test_a_study_keeps_what_is_finished(tmp_path: Path) -> None:
    seen = []

    def compute(cell: Any) -> dict[str, int]:
        seen.append(cell.seed)
        if cell.seed == 2 and len(seen) == 3:
            raise KeyboardInterrupt
        return {"twice": 2 * cell.seed}

    cells = [expansion.Comparison(seed, "digest", 1, 1) for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        study.Study(compute).records(cells, tmp_path, "test")
    records = study.Study(compute).records(cells, tmp_path, "test")
    assert seen == [0, 1, 2, 2, 3]
    assert [record["twice"] for record in records] == [0, 2, 4, 6]


def test_tables() -> None:
    assert study.markdown(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
    assert study.with_interval([1.0, 3.0], sign=True) == "+2.0 +- 12.7"  # t = 12.71 at one degree of freedom, error 1
    assert study.with_interval([2.5]) == "2.5"
