"""`paraminit train ghn3` and `paraminit train network`: tiny runs, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from hf_paraminit.cli.main import main
from hf_paraminit.ghn.model import GHN

TINY = ["--steps", "2", "--batch-size", "2", "--img-size", "32", "--cpu", "--log-every", "1"]
SMALL = ["--hidden-dim", "8", "--num-layers", "1", "--max-channels", "8"]


def train_ghn(output: Path, *options: str) -> int:
    return main(["train", "ghn3", "--output", str(output), *TINY, *SMALL, *options])


@pytest.mark.parametrize("options", [["--low-rank", "4"], ["--model", "ghn1", "--recipe", "published"]])
def test_predictor_is_trained_and_resumed(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture) -> None:
    sources = ["--architectures", "families=2", "deepnets", "--meta-batch", "2"]
    assert train_ghn(tmp_path, *sources, *options) == 0
    ghn = GHN.from_pretrained(tmp_path / "predictor")
    assert ghn.config.num_classes == 1000  # the generated classes are not a user's
    assert ghn.config.low_rank == (4 if "--low-rank" in options else None)
    assert ghn.metadata["training"]["architectures"] == ["families=2", "deepnets"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert train_ghn(tmp_path, *sources, *options) == 0
    assert train_ghn(tmp_path, *sources, *options, "--norm-penalty", "0.5") == 1
    assert "norm_penalty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architectures", "famlies"], "expected 'pool' alone"),
        (["--architectures", "families=many"], "SOURCE=WEIGHT"),
        (["--architectures", "pool", "families"], "expected 'pool' alone"),
        (["--data", "torch/nothing"], "Could not read"),
        (["--trackers", "papyrus"], "unknown trackers"),
        (["--img-size", "64"], "images of 32 pixels"),
        (["--gradient-accumulation", "2", "--meta-batch", "3"], "shared out to 2"),
        (["--model", "ghn2", "--size", "xl"], "No recipe"),
    ],
)
def test_bad_requests(tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert train_ghn(tmp_path / "run", "--networks", "1", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/predictor").exists()


def write_images(root: Path, side: int = 32) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def test_predictor_of_own_images_keeps_its_classes(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    assert train_ghn(tmp_path / "run", "--networks", "2", "--data", str(data)) == 0
    assert GHN.from_pretrained(tmp_path / "run/predictor").config.num_classes == 3


@pytest.mark.parametrize(
    "network", [["--split", "test", "--arch", "0"], ["test_resnet", "--model-kwargs", '{"drop_rate": 0.1}']]
)
def test_network_is_trained(tmp_path: Path, network: list[str], capsys: pytest.CaptureFixture) -> None:
    data = write_images(tmp_path / "images")
    assert main(["train", "network", *network, "--output", str(tmp_path / "run"), "--data", str(data), *TINY]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0 <= result["accuracy"] <= 1
    weights = load_file(tmp_path / "run/model.safetensors")
    assert (3,) in {tuple(weight.shape) for weight in weights.values()}  # the classifier's bias
    assert "unseen images" in capsys.readouterr().out


def test_network_must_be_named_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for names in ([], ["resnet18", "--arch", "0"]):
        assert main(["train", "network", *names, "--output", str(tmp_path / "run")]) == 1
        assert "either a timm model or" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def train_network(output: Path, *options: str) -> int:
    return main(["train", "network", "--output", str(output), "--steps", "2", "--cpu", "--log-every", "1", *options])


def test_recipe_of_the_networks_that_a_search_finds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Cutout, drop-path and a second classifier; resumed under other settings it is refused."""
    data = str(write_images(tmp_path / "images"))
    options = ["--split", "search", "--arch", "5", "--recipe", "darts", "--data", data, "--batch-size", "2"]
    assert train_network(tmp_path / "run", *options, "--hold-out", "2") == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["epochs"], result["drop_path"], result["auxiliary"]) == (600, 0.2, True)
    assert result["augmentation"]["cutout"] == 16
    assert result["held_out"]["last"] == 2
    assert any(name.startswith("auxiliary_head.") for name in load_file(tmp_path / "run/model.safetensors"))
    capsys.readouterr()
    assert train_network(tmp_path / "run", *options, "--hold-out", "3") == 1
    assert "settings (before, now) differ: {'held_out'" in capsys.readouterr().err


def test_recipe_of_residual_networks(tmp_path: Path) -> None:
    """LAMB, binary cross entropy, RandAugment, Mixup and CutMix, tested on larger images than it learns on."""
    data = str(write_images(tmp_path / "images", side=90))
    words = ["test_resnet", "--recipe", "a3", "--data", data, "--batch-size", "4"]
    words += ["--img-size", "72", "--test-img-size", "96"]
    assert train_network(tmp_path / "run", *words) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["optimizer"], result["loss"], result["gradient_clip"]) == ("lamb", "binary", 0.0)
    assert result["augmentation"] == {"color_jitter": False, "rand_augment": "rand-m6", "cutout": 0, "mixup": 0.1,
                                      "cutmix": 1.0}  # fmt: skip
    assert result["held_out"]["size"] == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["resnet18", "--auxiliary"], "has no second classifier"),
        (["resnet18", "--recipe", "darts"], "for networks of DeepNets-1M"),
        (["resnet18", "--hold-out", "5"], "tested on unseen ones"),
        (["--arch", "0", "--mixup", "1", "--batch-size", "3"], "even batch size"),
        (["--arch", "0", "--rand-augment", "strong"], "'strong'"),
        (["--arch", "0", "--loss", "binary", "--label-smoothing", "0.1"], "'binary' without"),
        (["--arch", "0", "--milestones", "60"], "milestones within the run"),
        (["--arch", "0", "--drop-path", "1"], "drop-path rate"),
    ],
)
def test_bad_recipes(tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert train_network(tmp_path / "run", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/model.safetensors").exists()
