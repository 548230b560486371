"""Each benchmark runs: a tiny case, its tables and its records. How fast anything is, no test asks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Script -> the record lists it writes, with the models of its tiny case and a column of each list.
EXPECTED = {
    "asvit": {"time": (["W=8"], "loop / forward mode"), "memory": (["W=8, 64 px"], "score / forward")},
    "zoo": {"stacks": (["cnn-tiny"], "speed-up"), "zoos": (["cnn-tiny"], "build s")},
    "init": {"time": (["timm/test_resnet"], "initialize / plain"), "memory": (["timm/test_resnet"], "extra peak MB")},
    "deepnets": {"generation": (["train"], "networks / CPU s"), "access": (["train"], "read graph ms")},
    "lets": {"time": (["6 x 384"], "materialize / plain"), "memory": (["6 x 384"], "model MB")},
    "hyperrep": {"draws": (["cnn-tiny"], "draw / create")},
    "ghn_training": {"steps": (["meta-batch 1, 2 images"], "networks / CPU s")},
    "graphs": {"models": (["test_resnet", "test_vit"], "trace / forward")},
    "xl": {"models": (["resnet18"], "prediction / products")},
}


@pytest.mark.parametrize("script", sorted(EXPECTED))
def test_quick_mode_prints_tables_and_writes_records(script: str, tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    command = [sys.executable, "-m", f"benchmarks.{script}", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert results["threads"] == 1
    for key, (models, column) in EXPECTED[script].items():
        assert [line["model"] for line in results[key]] == models
        assert all(line[column] > 0 for line in results[key])
        assert column in done.stdout
    if script == "xl":  # the decoder multiplies exactly what is needed, no more
        (line,) = results["models"]
        assert line["spent GFLOP"] == pytest.approx(line["needed GFLOP"], rel=1e-3)


def test_an_xl_predictor_is_left_out_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    xl = pytest.importorskip("benchmarks.xl")
    monkeypatch.setattr(xl, "NEEDED_MEMORY", float("inf"))
    monkeypatch.setattr(sys, "argv", ["xl"])
    xl.main()
    assert "Skipped: needs" in capsys.readouterr().out
