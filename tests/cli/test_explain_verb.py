import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from hf_paraminit.cli.main import main
from hf_paraminit.evaluation.explanation import Explanation


def test_the_table_and_the_verdict_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "test_resnet"]) == 0
    text = capsys.readouterr().out
    for name, _ in timm.create_model("test_resnet").named_parameters():
        assert f"\n{name} " in text
    assert text.endswith("\n0 faults, 0 notes\n")
    assert "no report" in text


def test_the_record_names_what_an_initializer_wrote(predictor_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    words = [
        "explain",
        "test_vit",
        "--init",
        f"local-dir:{predictor_folder}",
        "--num-classes",
        "7",
        "--json",
        str(path),
    ]
    assert main([*words, "--model-kwargs", '{"img_size": 64}']) == 0
    found = Explanation.from_dict(json.loads(path.read_text()))
    rows = {row.name: row for row in found.tensors}
    assert rows["head.weight"].shape == (7, 64)
    assert rows["head.weight"].writer.startswith("predicted by ")
    assert rows["cls_token"].writer.startswith("the model itself: ")
    assert found.output is not None
    assert found.output.num_classes == 7


def test_the_seed_decides_and_the_callers_random_state_stays(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    state = torch.get_rng_state()
    for path, seed in zip(paths, ("3", "3", "4"), strict=True):
        assert main(["explain", "test_vit", "--no-run", "--seed", seed, "--json", str(path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert paths[0].read_text() == paths[1].read_text() != paths[2].read_text()


def test_no_run_skips_the_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "test_resnet", "--no-run"]) == 0
    assert "not looked into: scales by depth and gradients: run=False" in capsys.readouterr().out


@pytest.mark.parametrize(("ending", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_is_a_file_of_its_kind(ending: str, head: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"scales.{ending}"
    assert main(["explain", "test_resnet", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(head)


def test_an_unknown_ending_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["explain", "test_resnet", "--plot", str(tmp_path / "scales.gif")])
    assert exit_.value.code == 2
    assert "must end in one of .png, .svg, .pdf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet5O"], "Did you mean 'resnet50'"),
        (["test_resnet", "--init", "ghn33"], "Did you mean"),
        (["test_resnet", "--init", "ghn3", "--init-kwargs", '{"nothing": 1}'], "'nothing'"),
    ],
)
def test_a_failure_leaves_no_file(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["explain", "test_resnet", "--no-run", "--plot", str(tmp_path / "a.png")]) == 1
    assert 'pip install "hf_paraminit[plots]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pretrained_reads_the_stored_weights(predictor_folder: Path, tmp_path: Path) -> None:
    folder, paths = tmp_path / "folder", [tmp_path / "stored.json", tmp_path / "fresh.json"]
    assert main(["init", "test_resnet", "--init", f"local-dir:{predictor_folder}", "--output", str(folder)]) == 0
    for path, more in zip(paths, (["--pretrained"], []), strict=True):
        assert main(["explain", f"local-dir:{folder}", "--no-run", "--json", str(path), *more]) == 0
    stored, fresh = (Explanation.from_dict(json.loads(path.read_text())) for path in paths)
    weight = load_file(folder / "model.safetensors")["fc.weight"]
    (row,) = (row for row in stored.tensors if row.name == "fc.weight")
    assert row.max_abs == weight.abs().max().item()
    assert row.writer == "unknown"
    assert fresh.tensors != stored.tensors
