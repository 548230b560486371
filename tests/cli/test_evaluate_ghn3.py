import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_evaluation as tiny

from hf_paraminit import GHN, GHNConfig
from hf_paraminit.cli.evaluate import ghn_experiments
from hf_paraminit.cli.evaluate.ghn_figures import MAX_BARS, write_accuracy_figures
from hf_paraminit.cli.evaluate.networks import find_networks
from hf_paraminit.cli.main import main
from hf_paraminit.errors import ParamInitError
from hf_paraminit.evaluation import network_cells

PUBLISHED = Path(__file__).parents[1] / "golden" / "evaluation" / "ghn3_results.jsonl"
EVALUATE = ["evaluate", "ghn3", "--processes", "1", "--cpu"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images, and small networks in place of those that the selection names."""

    def find(selection: list[str], **settings: Any) -> list[network_cells.Network]:
        sizes = {"val": 14, "test": 5, "search": 4, "broken": 0}
        names = [part.partition(":")[0] for part in selection]
        if unknown := set(names) - set(sizes):
            raise ParamInitError(f"no networks {unknown}")
        return [network for name in names for network in tiny.tiny_networks(sizes[name], name) or [tiny.BROKEN]]

    monkeypatch.setattr(ghn_experiments, "find_networks", find)
    monkeypatch.setattr(network_cells, "load_task", lambda *args, **settings: tiny.tiny_task())


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = GHNConfig(hidden_dim=16, num_heads=2, num_layers=1, max_shape=(8, 8, 3, 3), num_classes=tiny.CLASSES)
    folder = tmp_path_factory.mktemp("ghn") / "four-classes"
    GHN.new(config, seed=0).save_pretrained(folder)
    return f"local-dir:{folder}"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_accuracy_is_written_by_network_and_by_split(
    quick: None, four_classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*EVALUATE, "--inits", f"default,{four_classes}", "--networks", "test", "search", "--output", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["init", "networks", "count", "measure", "mean", "se", "sd", "best"]
    networks = rows_of(tmp_path / "networks.csv")
    assert len(networks) == 2 * (5 + 4)
    assert all(row["status"] == "done" for row in networks)
    splits = rows_of(tmp_path / "splits.csv")
    top1 = [float(row["accuracy_top1"]) for row in networks if row["init"] != "default" and row["group"] == "test"]
    (row,) = (r for r in splits if r["init"] != "default" and r["group"] == "test" and r["measure"] == "top1")
    assert float(row["mean"]) == pytest.approx(sum(top1) / 5)
    figures = {path.stem for path in tmp_path.glob("*.png")}
    assert {"accuracy_by_split", "accuracy_by_network", "seconds", "accuracy_by_size_default"} <= figures
    assert figures <= {path.stem for path in tmp_path.glob("*.csv")}
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert main([*words, "--json"]) == 0  # nothing is computed again
    assert (tmp_path / "runs.jsonl").read_text().splitlines() == lines
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2 * 2 * 2


def test_properties_are_measured_then_predicted_then_searched(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = tmp_path / "measured"
    groups = ["--networks", "val", "test"]
    assert main([*EVALUATE, "--experiment", "measure", *groups, "--steps", "1", "--output", str(measured)]) == 0
    assert len(rows_of(measured / "properties.csv")) == 14 + 5
    monkeypatch.setattr("hf_paraminit.evaluation.properties.GRID", {"C": (1, 10)})
    known = ["--properties", str(measured / "properties.csv"), "--output", str(tmp_path / "out")]
    assert main([*EVALUATE, "--experiment", "properties", *groups, *known]) == 0
    taus = {row["property"]: float(row["mean"]) for row in rows_of(tmp_path / "out" / "property_prediction.csv")}
    assert set(taus) == {"val_acc", "val_acc_noise", "time", "converge_time"}
    assert all(-1 <= tau <= 1 for tau in taus.values())
    assert (tmp_path / "out" / "property_prediction.png").is_file()
    capsys.readouterr()
    words = [*EVALUATE, "--experiment", "nas", *groups, "search", "--objective", "time", *known, "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert [row["rank"] for row in found] == [1, 2, 3, 4]
    assert {row["network"] for row in found} == {f"search/{index}" for index in range(4)}
    assert [row["predicted"] for row in found] == sorted(row["predicted"] for row in found)


def test_fine_tuning_starts_from_any_initializer(quick: None, tmp_path: Path) -> None:
    words = ["--experiment", "finetune", "--protocol", "few-shot", "--shots", "8", "--epochs", "1", "--noise", "1e-5"]
    inits = ["--inits", "default,he,ghn3", "--networks", "search", "--batch-size", "16", "--output", str(tmp_path)]
    assert main([*EVALUATE, *words, *inits]) == 0
    finals = rows_of(tmp_path / "finetune.csv")
    assert [row["init"] for row in finals] == ["default", "he", "ghn3"] * 4
    assert all(row["status"] == "done" and row["images"] == "32" for row in finals)
    assert len(rows_of(tmp_path / "curves.csv")) == 12 * 2
    assert (tmp_path / "convergence_search_0.png").is_file()


def test_diversity_and_published_results(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--experiment", "diversity", "--networks", "test", "--inits", "ghn3:builtin-values", "--json"]
    assert main([*EVALUATE, *words, "--output", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert 0 <= row["all"] <= 2
    assert (tmp_path / "diversity.png").is_file()
    words = ["--experiment", "published", "--published", str(PUBLISHED), "--output", str(tmp_path), "--json"]
    assert main([*EVALUATE, *words]) == 0
    assert json.loads(capsys.readouterr().out)["ghn3"]["best_network"] == "wide_resnet50_2"
    assert len(rows_of(tmp_path / "published_by_network.csv")) == 74


def test_predictors_of_several_sizes_are_set_beside_each_other(tmp_path: Path) -> None:
    records = [
        {
            "init": init,
            "group": group,
            "network": str(index),
            "seed": 0,
            "status": "done",
            "accuracy": {"top1": 10.0 + index + size / 1e6},
            "parameters": 1e6,
            "seconds": {"total": 0.5},
            "predictor": {"parameters": size},
        }
        for init, size in (("default", 0), ("tm8", 7e6), ("xlm16", 65e7))
        for group in ("test", "deep")
        for index in range(MAX_BARS // 2 + 1)
    ]
    written = {path.name for path in write_accuracy_figures(records, ("top1",), tmp_path)}
    assert "accuracy_by_network.png" not in written  # too many bars
    assert "accuracy_by_predictor_size.png" in written
    rows = rows_of(tmp_path / "accuracy_by_predictor_size.csv")
    assert [row["predictor_parameters"] for row in rows] == ["7000000", "650000000"] * 2
    assert float(rows[1]["top1"]) - float(rows[0]["top1"]) == pytest.approx(643)
    assert write_accuracy_figures([{"status": "failed"}], ("top1",), tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inits", "he"], "reads no graphs"),
        (["--inits", "gnh3"], "ghn3"),
        (["--networks", "test"], "classifiers of 1000 classes, quarters has 4"),
        (["--networks", "broken", "--readout", "features"], "All 1 cells failed"),
        (["--experiment", "properties", "--networks", "val", "test"], "--properties"),
        (["--experiment", "properties", "--networks", "val", "--properties", "PROPERTIES"], "needs 2 groups"),
        (["--experiment", "properties", "--properties", "missing.csv"], "missing.csv"),
        (["--experiment", "finetune", "--protocol", "few-shot"], "100 training images of each class"),
        (["--experiment", "finetune", "--inits", "nothing"], "nothing"),
        (["--experiment", "finetune", "--networks", "test"], "classifiers of 1000 classes"),
        (["--experiment", "detection", "--data", "nowhere"], "No images in"),
        (["--experiment", "published"], "--published"),
        (["--readout", "features", "--batchnorm", "batch"], "recalibrate"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    words: list[str], message: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    properties = tmp_path / "p.csv"
    properties.write_text("group,network,val_acc\nval,0,1\n")
    words = [str(properties) if word == "PROPERTIES" else word for word in words]
    assert main([*EVALUATE, *words, "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]


def test_an_empty_folder_of_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    words = ["--data", str(tmp_path / "images"), "--networks", "test:0", "--output", str(tmp_path / "out")]
    assert main([*EVALUATE, *words]) == 1
    assert "Could not read split 'train' of the folder" in capsys.readouterr().err


# --- selections of networks ------------------------------------------------------------------------------------------


def titles(*selection: str, **settings: Any) -> list[str]:
    found = find_networks(selection, **{"num_classes": 10, "img_size": 32, **settings})
    return [network.title for network in found]


def test_selections_name_parts_of_splits_genotypes_and_packages() -> None:
    pytest.importorskip("torchvision")
    assert titles("test:3", "wide:0-1", "test:3") == ["test/3", "wide/0", "wide/1"]
    assert titles("predefined") == ["predefined/ResNet-50", "predefined/ViT"]
    assert titles("DARTS", "ViT:64x4") == ["genotypes/DARTS 36x20", "genotypes/ViT 64x4"]
    assert titles("torchvision:resnet[15]*", "timm:resnet18") == [
        *(f"torchvision/resnet{depth}" for depth in (101, 152, 18, 50)),
        "timm/resnet18",
    ]
    assert len(titles("val", "bnfree")) == 600


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("tset", "No network of timm is called 'tset'"),
        ("test:500", "there are networks 0 to 499"),
        ("test:5-2", "out of range"),
        ("test:x", "selects nothing"),
        ("DARTS:48", "DARTS:48x14"),
        ("torchvision:resnet19", "No network of torchvision"),
        ("resnet19", "resnet18"),
    ],
)
def test_what_names_nothing_is_refused(part: str, message: str) -> None:
    with pytest.raises(ParamInitError, match=message):
        titles(part)


def test_published_weights_are_timms() -> None:
    with pytest.raises(ParamInitError, match="of timm only"):
        titles("test:0", pretrained=True)
    assert titles("resnet18", pretrained=True) == ["timm/resnet18"]


def test_a_missing_file_of_a_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamInitError, match=r"deepnets1m_eval\.hdf5"):
        titles("test:0", place=tmp_path)
    with pytest.raises(ParamInitError, match=r"missing"):
        titles("test:0", place=tmp_path / "missing.hdf5")


@pytest.mark.parametrize(
    "part", ["test:0", "predefined:1", "DARTS:8x3", "torchvision:resnet18", "vit_tiny_patch16_224"]
)
def test_networks_are_built_for_the_size_of_the_images(part: str) -> None:
    import torch

    (network,) = find_networks([part], num_classes=7, img_size=32)
    with torch.device("meta"):
        model = network.build()
    model = model.to("meta").eval()
    output = model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert (output[0] if isinstance(output, tuple) else output).shape == (2, 7)
