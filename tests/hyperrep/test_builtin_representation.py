"""What ships with the package: it is small, loads, and its samples do what the model card says."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.errors import PredictionError, PredictorNotFoundError
from hf_paraminit.evaluation.learning_curve import accuracy
from hf_paraminit.evaluation.tasks import load_task
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.initializers.hyperrep_sample import BUILTIN_FOLDER

FOLDERS = sorted(path.parent for path in BUILTIN_FOLDER.glob("*/config.json"))
CNN: Callable[..., nn.Module] = partial(ZooCNN, "cnn-tiny", in_chans=3, img_size=16)
RESNET: Callable[..., nn.Module] = partial(timm.create_model, "resnet10t", channels=(8, 8, 16, 16), stem_width=4)


def test_a_cnn_and_a_resnet_of_timm_ship() -> None:
    assert [folder.name for folder in FOLDERS] == ["cnn-tiny", "resnet10t"]


def test_it_is_within_the_size_that_was_agreed() -> None:
    assert FOLDERS
    files = [file for folder in FOLDERS for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 12e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_card_says_what_made_it_and_what_it_cost(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for text in ("paraminit zoo build", "paraminit train hyperrep", "CPU-seconds", "copied anchors", "random init"):
        assert text in card
    metadata = json.loads((folder / "config.json").read_text())["metadata"]
    assert metadata["zoo"]["data"] == "synthetic"


def test_samples_beat_a_random_start_before_any_training_on_the_zoos_task() -> None:
    task = load_task("synthetic", size=16)
    scores = []
    for seed in range(4):
        model = CNN()
        report = hf_paraminit.initialize(model, "hyperrep-sample", seed=seed)
        assert not report.kept
        scores.append(accuracy(model, task.test))
    assert min(scores) > 20  # of ten classes
    assert sum(scores) / len(scores) > 60
    assert len(set(scores)) > 1


def test_samples_of_the_resnet_beat_a_random_start_once_statistics_are_estimated() -> None:
    task = load_task("synthetic", size=32)
    scores = []
    for seed in range(3):
        model = RESNET(num_classes=10, init="hyperrep-sample", init_kwargs={"seed": seed})
        report = model._hf_paraminit
        assert not report.kept  # type: ignore[union-attr]
        assert str(report.predictor).endswith("resnet10t")  # type: ignore[union-attr]
        hf_paraminit.recalibrate_batchnorm(model, task.train[0].split(64))
        scores.append(accuracy(model, task.test))
    assert min(scores) > 20  # of ten classes
    assert sum(scores) / len(scores) > 60
    assert len(set(scores)) > 1


def test_what_ships_is_found_by_name() -> None:
    report = hf_paraminit.initialize(RESNET(num_classes=10), "hyperrep-sample", source="resnet10t", policy="layers")
    assert not report.kept
    with pytest.raises(PredictionError, match=r"here cnn-tiny.*ResNet differs"):
        hf_paraminit.initialize(RESNET(num_classes=10), "hyperrep-sample", source="cnn-tiny")


def test_new_classes_keep_their_own_head() -> None:
    report = hf_paraminit.initialize(CNN(num_classes=7), "hyperrep-sample")
    assert set(report.kept) == {"module_list.8.weight", "module_list.8.bias"}
    report = hf_paraminit.initialize(RESNET(num_classes=7), "hyperrep-sample")
    assert set(report.kept) == {"fc.weight", "fc.bias"}


def test_a_model_that_nothing_ships_for_is_told_what_there_is_and_the_way_out() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    with pytest.raises(
        PredictorNotFoundError, match=r"(?s)cnn-tiny for 3 x 16 x 16 images or resnet10t .*policy.*paraminit zoo build"
    ):
        hf_paraminit.initialize(model.to_empty(device="cpu"), "hyperrep-sample")


def test_the_name_reaches_models_that_are_built_by_a_host() -> None:
    layered = timm.create_model("test_resnet", init="hyperrep-sample", init_kwargs={"policy": "layers"})
    assert layered._hf_paraminit.initializer == "hyperrep-sample"  # type: ignore[union-attr]
