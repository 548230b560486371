"""Each example runs as its header says, on tiny settings."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

from hf_paraminit import GHN

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = (
    "timm_quickstart",
    "own_module",
    "own_predictor",
    "own_scales",
    "search_and_grow_asvit",
    "finetune_predictor",
    "finetune_learngene",
    "finetune_with_trainer",
    "train_hyper_representation",
    "load_hyper_representation",
    "sample_hyper_representation",
    "grow_vit",
    "learngene_sizes",
    "torchvision_small_images",
    "zoo_load",
)


def run(script: str, *words: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_headers_say_command_time_and_result(script: str) -> None:
    text = (EXAMPLES / f"{script}.py").read_text()
    header = text.split('"""')[1]
    assert f"    python examples/{script}.py" in header
    assert "\nTime: " in header
    assert "\nExpected: " in header
    assert len(text.splitlines()) < 100


def test_timm_quickstart(tmp_path: Path) -> None:
    lines = run("timm_quickstart", "--model", "test_resnet", "--steps", "12", folder=tmp_path).splitlines()
    num_tensors = sum(1 for _ in timm.create_model("test_resnet").parameters())
    assert lines[0].startswith(f"ghn3:builtin: {num_tensors} predicted, 0 kept, 0 refused")
    table = [line.split() for line in lines[-3:]]
    assert table[0] == ["steps", "default", "ghn3"]
    assert [row[0] for row in table[1:]] == ["1-10", "11-12"]
    default, predicted = (float(value) for value in table[1][1:])
    assert default != predicted
    assert 0 < max(default, predicted) < 10


def test_own_module(tmp_path: Path) -> None:
    output = run("own_module", "--output", "weights", folder=tmp_path)
    assert "ghn3:builtin: 12 predicted, 0 kept, 0 refused" in output
    assert "ghn3:builtin: 17 predicted, 0 kept, 0 refused" in output
    assert "45 tensors were not offered" in output
    assert "own: 2 batch-norm layers" in output
    assert "resnet18: 20 batch-norm layers" in output
    sizes = {path.stem: len(load_file(path)) for path in (tmp_path / "weights").iterdir()}
    assert sizes == {"own": 18, "resnet18": 122}


def test_finetune_with_trainer(tmp_path: Path) -> None:
    words = ("--images", "64", "--epochs", "2", "--output", "finetuned")
    lines = run("finetune_with_trainer", *words, folder=tmp_path).splitlines()
    assert sum("predicted, 0 kept, 0 refused" in line for line in lines) == 1
    start = lines.index("accuracy on unseen images after each epoch")
    rows = [line.split() for line in lines[start + 1 : start + 3]]
    assert [row[0] for row in rows] == ["default", "ghn3"]
    assert all(0 <= float(value) <= 1 for row in rows for value in row[1:])
    assert [len(row) for row in rows] == [3, 3]
    assert lines[-1] == f"saved to finetuned; loaded again it classifies {rows[1][-1]} correctly"
    assert {path.name for path in (tmp_path / "finetuned").iterdir()} >= {"config.json", "model.safetensors"}


def test_search_and_grow_asvit(tmp_path: Path) -> None:
    words = ("--steps", "2", "--stop-params", "1", "--train-steps", "12")
    lines = run("search_and_grow_asvit", *words, folder=tmp_path).splitlines()
    assert lines[0].startswith("topology ")
    assert lines[1].startswith("grown    ")
    assert any("0 kept, 0 refused" in line for line in lines)
    agreements = [line for line in lines if "of the smaller trained network" in line]
    assert [line.partition(", from ")[2] for line in agreements] == ["default", "ghn3", "handed on"]
    assert lines[-1].startswith("length distortion: predicted ")


def test_own_predictor(tmp_path: Path) -> None:
    output = run("own_predictor", "--steps", "3", "--output", "run", folder=tmp_path)
    assert output.count("accuracy of an unseen network") == 2
    assert "14 predicted, 0 kept" in output
    assert GHN.from_pretrained(tmp_path / "run" / "predictor").config.hidden_dim == 32


def test_finetune_predictor(tmp_path: Path) -> None:
    run("own_predictor", "--steps", "2", "--output", "run", folder=tmp_path)
    words = ("--predictor", "run/predictor", "--steps", "2", "--output", "tuned")
    lines = run("finetune_predictor", *words, folder=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["accuracy before", "step 2", "accuracy after"]
    before, after = (GHN.from_pretrained(tmp_path / name).state_dict() for name in ("run/predictor", "tuned"))
    moved = {name.partition(".")[0] for name, value in before.items() if not value.equal(after[name])}
    assert moved >= {"decoder", "gnn", "shape_enc"}


def test_hyper_representations(tmp_path: Path) -> None:
    words = ("--models", "8", "--epochs", "2", "--steps", "8", "--output", "made")
    output = run("train_hyper_representation", *words, folder=tmp_path)
    assert "zoo: 8 networks" in output
    assert "reconstruction R2, train:" in output
    loaded = run("load_hyper_representation", "--predictor", "made/predictor", "--zoo", "made/zoo", folder=tmp_path)
    assert "2 test networks: codes (2, 72, 32)" in loaded
    assert loaded.count("spread of the weights") == 8
    words = ("--predictor", "made/predictor", "--networks", "2")
    found = run("sample_hyper_representation", *words, folder=tmp_path)
    assert "hyperrep-sample: 8 predicted, 0 kept, 0 refused" in found
    assert found.count("mean distance to the nearest anchor") == 4


def test_learngene_sizes(tmp_path: Path) -> None:
    lines = run("learngene_sizes", "--steps", "2", "--output", "gene", folder=tmp_path).splitlines()
    assert lines[0].split() == ["layers", "width", "timm", "generated"]
    rows = [line.split() for line in lines[1:]]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(4, 32), (5, 48), (6, 64), (8, 64)]
    assert all(0 <= float(share.rstrip("%")) <= 100 for row in rows for share in row[2:])
    assert (tmp_path / "gene" / "model.safetensors").is_file()


def test_finetune_learngene(tmp_path: Path) -> None:
    words = ("--width", "64", "--depth", "2", "--epochs", "1", "--batch-size", "500", "--output", "runs")
    lines = run("finetune_learngene", *words, folder=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["learngene", "timm"]
    assert all(0 <= float(line.split()[1]) <= 100 for line in lines)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"learngene", "timm"}


def test_torchvision_small_images(tmp_path: Path) -> None:
    words = ("--model", "shufflenet_v2_x0_5", "--images", "48")
    lines = run("torchvision_small_images", *words, folder=tmp_path).splitlines()
    assert lines[0] == "shufflenet_v2_x0_5 on synthetic: 10 classes, 48 test images"
    assert lines[1].startswith("default: 0 tensors predicted; nearest_mean ")
    assert lines[2].startswith("ghn3:builtin-values: 170 tensors predicted; nearest_mean ")


def test_zoo_load(tmp_path: Path) -> None:
    words = ("--seeds", "3", "--epochs", "2", "--output", "zoo")
    lines = run("zoo_load", *words, folder=tmp_path).splitlines()
    assert lines[0] == "12 checkpoints of 6 networks, 4 of them at the end of training"
    assert lines[2] == "4160 weights in 40 tokens of 217: (4, 40, 217)"
    before, after = (float(word.strip(",")) for word in (lines[3].split()[5], lines[3].split()[7]))
    assert 0 < after < before
    assert lines[4] == "restored exactly: True"
    assert run("zoo_load", *words, folder=tmp_path).splitlines() == lines


def test_grow_vit(tmp_path: Path) -> None:
    out = run("grow_vit", "--donor-steps", "2", "--growth-steps", "1", "--steps", "2", folder=tmp_path)
    lines = [line.split() for line in out.splitlines() if "first loss" in line]
    assert [line[0] for line in lines] == ["default", "ligo"]
    assert lines[0][3] != lines[1][3]
    assert "ligo: " in out


@pytest.mark.slow
def test_own_scales(tmp_path: Path) -> None:
    lines = run("own_scales", "--output", "scales", folder=tmp_path).splitlines()
    assert lines[0] == "found: {'kernel': 2.0}"
    default, predicted = (float(part.split(":")[1].rstrip(" %")) for part in lines[-1].split(","))
    assert predicted > default + 20  # 24.8 and 87.4 when it was written
    assert GHN.from_pretrained(tmp_path / "scales" / "predictor").config.decodes == "scales"
