import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import hf_paraminit  # noqa: F401  (init= of timm)
from hf_paraminit.cli.evaluate.learngene_lets import _sizes
from hf_paraminit.cli.main import main
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.generator import LeTsGenerator

SMALL = ("--embed-dim", "16", "--num-heads", "2", "--depth", "2", "--aux-dim", "32", "--num-blocks", "2",
         "--img-size", "16", "--batch-size", "4", "--class-counts", "1,1,1,0", "--cpu")  # fmt: skip

TINY = LeTsConfig(
    embed_dim=16, num_heads=2, depth=2, aux_dim=32, pairs=adjacent_pairs(2, 2), patch_size=16, img_size=32,
    num_classes=3, class_token=True, gene_init="scaled",
)  # fmt: skip


def train(*words: str) -> int:
    return main(["train", "learngene-LeTs", *words])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_the_result_initializes_models_of_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert train("--output", str(output), "--steps", "2", *SMALL) == 0
    assert "aux_accuracy on validation images" in capsys.readouterr().out
    record = json.loads((output / "predictor" / "config.json").read_text())
    assert record["paraminit_type"] == "learngene-LeTs"
    assert record["metadata"]["training"]["steps"] == 2
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "num_classes": 3}
    for width, depth in ((16, 2), (24, 3), (32, 5)):
        model = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=width, depth=depth, num_heads=width // 8,
            init=f"local-dir:{output / 'predictor'}", **sizes,
        )  # fmt: skip
        assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert train("--output", str(output), "--steps", "2", *SMALL) == 0, "a finished run is written again"


def test_a_teacher_and_an_average_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": timm.create_model("test_resnet", num_classes=3).state_dict()}, teacher)
    words = ("--teacher", "test_resnet", "--teacher-checkpoint", str(teacher), "--loss-per", "images",
             "--ema-decay", "0.5", "--gradient-accumulation", "2")  # fmt: skip
    assert train("--output", str(tmp_path / "run"), "--steps", "1", *words, *SMALL) == 0
    config = json.loads((tmp_path / "run" / "predictor" / "config.json").read_text())
    assert config["metadata"]["training"]["teacher"] == "test_resnet"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--embed-dim", "20", "--num-heads", "3"), "not divisible by num_heads=3"),
        (("--aux-dim", "36"), "aux_dim=36"),
        (("--depth", "3"), "even number of learngene layers"),
        (("--epochs", "3"), "no epochs"),
        (("--published",), "add --teacher"),
        (("--teacher-checkpoint", "x.pth"), "add --teacher"),
        (("--teacher", "no_such_model"), "no model 'no_such_model'"),
        (("--data", "torch/no_such_set"), "Could not read split"),
        (("--gradient-clip", "-1"), "gradient_clip"),
        (("--ema-decay", "1.5"), "ema_decay"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert train("--output", str(tmp_path / "run"), "--steps" if "--epochs" not in words else "--seed", "2",
                 *SMALL, *words) == 1  # fmt: skip
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": timm.create_model("test_resnet", num_classes=7).state_dict()}, teacher)
    words = ("--teacher", "test_resnet", "--teacher-checkpoint", str(teacher))
    assert train("--output", str(tmp_path / "run"), "--steps", "1", *SMALL, *words) == 1
    assert "with 3 classes" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_tleg_is_trained_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    words = ("--embed-dim", "16", "--num-heads", "2", "--depth", "2", "--img-size", "16", "--batch-size", "4",
             "--class-counts", "1,1,1,0", "--cpu", "--steps", "2")  # fmt: skip
    assert main(["train", "tleg", "--output", str(output), *words]) == 0
    assert "aux_accuracy on validation images" in capsys.readouterr().out
    record = json.loads((output / "predictor" / "config.json").read_text())
    assert record["paraminit_type"] == "tleg"
    assert record["metadata"]["training"]["depth"] == 2
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, num_heads=2, depth=5, class_token=False,
        global_pool="avg", num_classes=3, init=f"local-dir:{output / 'predictor'}",
    )  # fmt: skip
    assert not model._hf_paraminit.kept
    assert main(["train", "tleg", "--output", str(tmp_path / "other"), *words, "--published"]) == 1
    assert "add --teacher" in error_of(capsys)
    assert not (tmp_path / "other").exists()


def test_sizes_are_sampled_unless_it_is_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (((), True), (("--no-sample-sizes",), False)):
        output = tmp_path / str(expected)
        assert train("--output", str(output), "--steps", "1", *SMALL, *words) == 0
        record = json.loads((output / "predictor" / "config.json").read_text())
        assert record["metadata"]["training"]["sample_sizes"] is expected
    assert train("--output", str(tmp_path / "True"), "--steps", "1", *SMALL, "--no-sample-sizes") == 1
    assert "sample_sizes" in error_of(capsys)


@pytest.mark.slow
def test_the_evaluation_compares_all_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LeTsGenerator.new(TINY, seed=0).save_pretrained(tmp_path / "gene")
    words = ["evaluate", "learngene-LeTs", "--source", str(tmp_path / "gene"), "--sizes", "16x1,24x3",
             "--seeds", "1", "--steps", "2", "--no-tuning", "--validation", "--processes", "1"]  # fmt: skip
    output = tmp_path / "results"
    assert main([*words, "--output", str(output), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["summary"]["rows"]
    starts = {"default", "LeTs", "fresh F and G", "shuffled LeTs", "weight-selection", "scaled random"}
    assert {(row["net"], row["init"]) for row in rows} == {(net, init) for net in ("16x1", "24x3") for init in starts}
    assert (output / "index.html").exists()
    before = (output / "runs.jsonl").read_text()
    assert '"failed"' not in before
    assert main([*words, "--output", str(output)]) == 0
    assert "from the learngene" in capsys.readouterr().out
    assert (output / "runs.jsonl").read_text() == before, "finished cells are not computed again"
    assert main([*words[:5], "20x1", "--output", str(tmp_path / "other")]) == 1
    assert "no net of width 20" in error_of(capsys)


@pytest.mark.slow
def test_the_head_start_is_measured_against_ten_epochs_from_scratch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LeTsGenerator.new(TINY, seed=0).save_pretrained(tmp_path / "gene")
    output = tmp_path / "results"
    words = ["evaluate", "learngene-LeTs", "--head-start", "--source", str(tmp_path / "gene"), "--sizes", "16x1,24x2",
             "--seeds", "2", "--batch-size", "500", "--processes", "1", "--output", str(output)]  # fmt: skip
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((output / "head_start.json").read_text())
    assert not found["failures"]
    starts = ["default", "LeTs", "fresh F and G", "shuffled LeTs", "weight-selection", "scaled random"]
    expected = [(start, 10) for start in ("default", "scaled random")] + [(start, 1) for start in starts]
    assert [(row["net"], row["start"], row["epochs"]) for row in found["rows"]] == [
        (net, *place) for net in ("16x1", "24x2", "all") for place in expected
    ]
    cells = [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]
    # 1,000 images in batches of 500: two steps are one epoch
    assert {tuple(cell["curve"]) for cell in cells} == {("2",), ("20",)}
    assert {cell["block"] for cell in cells if cell["seed"] >= 100} == {"validation"}
    assert {cell["block"] for cell in cells if cell["seed"] < 100} == {"test"}
    assert main(words) == 0
    assert "LeTs after 1 epoch minus this" in capsys.readouterr().out
    assert len((output / "runs.jsonl").read_text().splitlines()) == len(cells), "finished cells are not computed again"


def test_the_head_start_has_its_own_length(tmp_path: Path) -> None:
    words = ["evaluate", "learngene-LeTs", "--head-start", "--steps", "9", "--output", str(tmp_path / "results")]
    with pytest.raises(SystemExit):
        main(words)
    assert not (tmp_path / "results").exists()


def test_sizes_are_read() -> None:
    assert _sizes("64x3, 128x6") == [(64, 3), (128, 6)]
    for text in ("64", "64x", "0x3", "64x3,64x3", "ax1"):
        with pytest.raises(argparse.ArgumentTypeError):
            _sizes(text)


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "hf_paraminit",
               "train", "learngene-LeTs", "--output", str(tmp_path / "run"), "--steps", "2", *SMALL]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Written to") == 1
    assert LeTsGenerator.from_pretrained(tmp_path / "run" / "predictor").config.aux_dim == 32
