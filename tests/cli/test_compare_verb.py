import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_paraminit.cli import benchmark as benchmark_verb
from hf_paraminit.cli.benchmark import PRESETS, markdown_table
from hf_paraminit.cli.main import main
from hf_paraminit.evaluation.comparison import TUNING_FACTORS

TINY = ["--steps", "3", "--batch-size", "16", "--seeds", "2", "--img-size", "32", "--no-tuning", "--processes", "1"]


def test_it_prints_tables_and_a_verdict_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["compare", "C", "--inits", "he,ghn3+recalibrated,strong-default", *TINY, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "C (convnext_tiny, small), accuracy in percent by step" in out
    assert "ghn3+recalibrated" in out
    assert "1 architecture: the verdict is about these" in out
    assert str(output / "index.html") in out
    names = {"runs.jsonl", "summary.json", "summary.csv", "cells.csv", "index.html", "curves.png"}
    assert names <= {path.name for path in output.iterdir()}
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "index.html").read_text()
    assert "paraminit compare C --data digits --inits he,ghn3+recalibrated,strong-default --seeds 2" in page


def test_json_is_one_document_and_own_names_can_be_defined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"mixed": {"*.weight": "he", "*": "default"}}
    words = ["compare", "C", "--inits", "mixed", "--define", json.dumps(rules), *TINY, "--output", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["summary"]["inits"] == ["default", "mixed"]
    assert record["summary"]["failures"] == []
    assert record["settings"]["inits"]["mixed"]["init"] == rules["mixed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "R", "--inits", "gnh3"], "ghn3"),
        (["compare", "no_such_model", "--inits", "he"], "no model 'no_such_model'"),
        (
            ["compare", "C", "--inits", "he", "--img-size", "8"],
            "could not run C (convnext_tiny, small) on images (3, 8, 8)",
        ),
        (["compare", "R", "--inits", "he", "--data", "nowhere"], "Could not read split 'train'"),
        (["compare", "R", "--inits", "he", "--init-kwargs", '{"xavier": {}}'], "xavier, which is not compared"),
    ],
)
def test_failures_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("inits", ["he,", "he,he", "", ","])
def test_a_bad_list_of_names_is_a_wrong_argument(inits: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "R", "--inits", inits])
    assert exit_.value.code == 2


def test_the_benchmark_prints_markdown_with_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = benchmark_verb.Preset(nets=("C",), seeds=(200, 201), steps=3, tune=False, block="validation")
    monkeypatch.setitem(PRESETS, "quick", short)
    monkeypatch.setattr(benchmark_verb, "training_fingerprints", list)
    words = ["benchmark", "--inits", "he,ten-times", "--processes", "1", "--output", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "| init | AUC - default [95 %] | nets improved | sign test p | p (Holm) | never worse | verdict |" in out
    assert "| claim | what we see | 95 % interval | so? |" in out
    assert "not measured" in out
    assert main([*words, "--json"]) == 0
    assert {claim["answer"] for claim in json.loads(capsys.readouterr().out)["claims"]} >= {"not measured"}


@pytest.mark.parametrize(
    ("preset_tunes", "words", "factors"),
    [(False, [], [1.0]), (False, ["--tuning"], TUNING_FACTORS), (True, ["--no-tuning"], [1.0])],
)
def test_the_preset_decides_on_tuning_unless_told(
    preset_tunes: bool, words: list[str], factors: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = benchmark_verb.Preset(nets=("C",), seeds=(200, 201), steps=1, tune=preset_tunes, block="validation")
    monkeypatch.setitem(PRESETS, "novel", short)
    common = ["--preset", "novel", "--inits", "he", *words]
    assert main(["benchmark", *common, "--processes", "1", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["settings"]["factors"] == pytest.approx(list(factors))
    page = (tmp_path / "index.html").read_text()
    assert f"paraminit benchmark {' '.join(common)} --output" in page


def test_the_benchmark_takes_what_can_start_a_network_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_verb, "list_initializers", lambda: ["default", "ghn1", "ghn3", "he"])
    found, left_out = benchmark_verb.benchmarked_inits()
    assert found == ["default", "ghn3", "he", *benchmark_verb.COMPARATORS]
    assert list(left_out) == ["ghn1"]


def test_bars_in_cells_are_escaped() -> None:
    assert markdown_table(["a"], [["|cos|"]]).splitlines()[-1] == r"| \|cos\| |"


@pytest.mark.slow
def test_two_launched_processes_share_the_cells(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "hf_paraminit"]
    words = ["compare", "C", "--inits", "he", *TINY, "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [(tmp_path / name).read_text().splitlines() for name in ("runs.jsonl", "runs-001.jsonl")]
    assert all(lines)
    keys = [json.loads(line)["key"] for part in lines for line in part]
    assert len(keys) == len(set(keys)) == 8
    assert done.stdout.count("Written to") == 1


@pytest.mark.slow
def test_the_quick_preset_runs(tmp_path: Path) -> None:
    assert main(["benchmark", "--preset", "quick", "--output", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())["summary"]
    assert summary["overall"]["ten-times"]["estimate"]["mean"] < 0
