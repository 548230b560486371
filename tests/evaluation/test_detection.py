from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_paraminit.errors import ParamInitError, TrainingConfigError
from hf_paraminit.evaluation.detection import (
    DetectionBatches,
    DetectionExperiment,
    DetectionProtocol,
    LastFeatureMap,
    average_precision,
    boxes_of,
    load_pedestrians,
    mirrored,
)
from hf_paraminit.evaluation.fine_tuning import Start
from hf_paraminit.evaluation.network_cells import Network, NetworkCell, compute_cells

pytest.importorskip("torchvision")


class Backbone(nn.Module):
    """A small classifier of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(48, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.features(images)).flatten(1))


@pytest.fixture
def penn_fudan(tmp_path: Path) -> Path:
    """Four images with one or two bright rectangles."""
    rng = np.random.default_rng(0)
    for folder in ("PNGImages", "PedMasks"):
        (tmp_path / folder).mkdir()
    for index in range(4):
        image = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), dtype=np.uint8)
        for number in range(1 + index % 2):
            mask[8:40, 6 + 30 * number : 20 + 30 * number] = number + 1
        image[mask > 0] = 240
        Image.fromarray(image).save(tmp_path / "PNGImages" / f"P{index}.png")
        Image.fromarray(mask).save(tmp_path / "PedMasks" / f"P{index}_mask.png")
    return tmp_path


def test_boxes_are_read_from_masks(penn_fudan: Path) -> None:
    data = load_pedestrians(penn_fudan)
    assert [tuple(image.shape) for image in data.images] == [(3, 48, 64)] * 4
    assert data.boxes[0].tolist() == [[6, 8, 19, 39]]
    assert data.boxes[1].tolist() == [[6, 8, 19, 39], [36, 8, 49, 39]]
    assert boxes_of(torch.zeros(4, 4, dtype=torch.int64)).shape == (0, 4)


def test_the_split_is_random_but_repeats(penn_fudan: Path) -> None:
    data = load_pedestrians(penn_fudan)
    training, test = data.split(1, seed=0)
    assert (len(training.images), len(test.images)) == (3, 1)
    assert torch.equal(test.images[0], data.split(1, seed=0)[1].images[0])
    with pytest.raises(TrainingConfigError, match="4 images cannot be split"):
        data.split(4, seed=0)


def test_a_missing_folder_or_mask_is_named(penn_fudan: Path) -> None:
    with pytest.raises(TrainingConfigError, match="No images in"):
        load_pedestrians(penn_fudan / "elsewhere")
    (penn_fudan / "PedMasks" / "P2_mask.png").unlink()
    with pytest.raises(TrainingConfigError, match=r"P2\.png has no mask"):
        load_pedestrians(penn_fudan)


def test_mirrored_images_have_mirrored_boxes(penn_fudan: Path) -> None:
    assert mirrored(torch.tensor([[6.0, 8, 19, 39]]), 64).tolist() == [[45, 8, 58, 39]]
    data = load_pedestrians(penn_fudan)
    batches = DetectionBatches(data, 2)
    seen = [pair for index in range(batches.per_epoch * 4) for pair in zip(*batches(index), strict=True)]
    for image, target in seen:
        for left, top, right, bottom in target["boxes"].long().tolist():
            inside = image[:, top + 1 : bottom, left + 2 : right - 1]
            assert float(inside.min()) > 0.9
    assert len({tuple(target["boxes"].flatten().tolist()) for _, target in seen}) == 4


def test_the_order_is_the_seeds(penn_fudan: Path) -> None:
    data = load_pedestrians(penn_fudan)
    orders = set()
    for seed in range(8):
        batches = DetectionBatches(data, 1, seed=seed)
        boxes = [batches(index)[1][0]["boxes"] for index in range(4 * batches.per_epoch)]
        orders.add(tuple(float(value) for one in boxes for value in one.flatten()))
    assert len(orders) > 1


def test_the_backbone_is_the_last_map_before_pooling() -> None:
    network = Backbone()
    backbone = LastFeatureMap(network)
    assert (backbone.layer, backbone.out_channels) == ("features", 12)
    images = torch.randn(2, 3, 96, 64)
    assert torch.equal(backbone(images), network.features(images))
    assert network.training


@pytest.mark.parametrize(
    "network", [nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), nn.Sequential(nn.Conv2d(3, 4, 256), nn.Flatten())]
)
def test_networks_without_a_map_or_of_one_size_are_refused(network: nn.Module) -> None:
    with pytest.raises(ParamInitError, match="cannot be the backbone"):
        LastFeatureMap(network)


BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "expected"),
    [
        (BOXES, [0.9, 0.8], 0.5, 1.0),
        (BOXES[:1], [0.9], 0.5, 51 / 101),  # recall 1/2 with precision 1
        (torch.cat([BOXES[:1] + 100, BOXES]), [0.9, 0.8, 0.7], 0.5, 2 / 3),
        (torch.cat([BOXES[:1], BOXES[:1]]), [0.9, 0.8], 0.5, 51 / 101),  # found twice counts once
        (BOXES + 3, [0.9, 0.8], 0.5, 0.0),  # overlap 49 / 151
        (BOXES + 3, [0.9, 0.8], 0.3, 1.0),
        (BOXES[:0], [], 0.5, 0.0),
    ],
)
def test_average_precision(boxes: torch.Tensor, scores: list[float], threshold: float, expected: float) -> None:
    found = [(boxes, torch.tensor(scores), BOXES)]
    assert average_precision(found, threshold) == pytest.approx(expected, abs=1e-6)


def test_precision_is_taken_over_all_images() -> None:
    empty = torch.zeros(0, 4)
    found = [(BOXES[:1], torch.tensor([0.5]), BOXES[:1]), (BOXES[1:], torch.tensor([0.9]), empty)]
    assert average_precision(found, 0.5) == pytest.approx(0.5)
    assert np.isnan(average_precision([(BOXES, torch.tensor([0.9, 0.8]), empty)], 0.5))


def test_detectors_are_trained_and_tested(penn_fudan: Path, tmp_path: Path) -> None:
    protocol = DetectionProtocol(epochs=1, num_test=2, sides=(64, 96))
    experiment = DetectionExperiment(
        root=penn_fudan,
        starts={"he": Start(label="he", init="he")},
        protocol=protocol,
        folder=tmp_path / "out",
        cpu=True,
    )
    cell = NetworkCell(network=Network(group="own", name="backbone", build=Backbone), init="he")
    (record,) = compute_cells(experiment, [cell], output=tmp_path / "out", processes=1, title="test", together=True)
    assert record["status"] == "done", record
    assert 0 <= record["ap"] <= record["ap50"] <= 100
    assert record["coverage"] > 0.9


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"num_test": 0}, {"sides": (0, 10)}, {"learning_rate": float("nan")}]
)
def test_wrong_protocols_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingConfigError, match="cannot be trained"):
        DetectionProtocol(**changes)
