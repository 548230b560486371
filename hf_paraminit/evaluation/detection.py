"""Fine-tuning a network with predicted weights as the backbone of a detector of pedestrians (GHN-2, arXiv 2110.13100).

The protocol is that of torchvision's tutorial: Penn-Fudan pedestrians, Faster R-CNN on the last feature map alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hf_paraminit.errors import MissingDependencyError, ParamInitError, TrainingConfigError
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.fine_tuning import Start
from hf_paraminit.evaluation.network_cells import NetworkCell, cell_key
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.seeds import seeded_generator
from hf_paraminit.training.loop import TrainingConfig, train

# Legend: B boxes found, G boxes that are there; a box is (x1, y1, x2, y2) in pixels.

Target = dict[str, Tensor]

IMAGES, MASKS = "PNGImages", "PedMasks"
NUM_TEST = 50  # images, the last of a random order
NUM_CLASSES = 2  # background and pedestrian
ANCHOR_SIDES, ANCHOR_RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
SIDES = (800, 1333)  # that images are scaled to: the shorter side, unless the longer one would exceed the second
IOU_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))  # COCO's
RECALL_LEVELS = 101  # COCO's
MAX_DETECTIONS = 100  # per image, COCO's
PROBE_SIDE = 256  # of the image that finds the last feature map


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionProtocol:
    """How detectors are trained: SGD with momentum 0.9, a tenth of the rate after every third epoch.

    Attributes:
        epochs: Passes over the training images.
        learning_rate: At the start.
        weight_decay: Of SGD.
        batch_size: Images per step.
        sides: Shorter and longer side that images are scaled to; (320, 533) for attention networks.
        num_test: Images that are kept for the test.
    """

    epochs: int = 10
    learning_rate: float = 0.005
    weight_decay: float = 5e-4
    batch_size: int = 2
    sides: tuple[int, int] = SIDES
    num_test: int = NUM_TEST

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.num_test, *self.sides) < 1 or not self.learning_rate >= 0:
            raise TrainingConfigError(f"A detector cannot be trained with {asdict(self)}: expected positive numbers.")


@dataclass(frozen=True, eq=False)
class Pedestrians:
    """Images and the boxes in them.

    Attributes:
        images: (3, H, W) uint8 each.
        boxes: (G, 4) float32 each.
    """

    images: Sequence[Tensor]
    boxes: Sequence[Tensor]

    def split(self, num_test: int, *, seed: int) -> tuple[Pedestrians, Pedestrians]:
        """Training and test images, by a random order.

        Raises:
            TrainingConfigError: Nothing would be left to train on.
        """
        if num_test >= len(self.images):
            raise TrainingConfigError(
                f"{len(self.images)} images cannot be split: {num_test} are for the test, so none would be left."
            )
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed)).tolist()
        return self._of(order[:-num_test]), self._of(order[-num_test:])

    def _of(self, chosen: Sequence[int]) -> Pedestrians:
        return Pedestrians([self.images[index] for index in chosen], [self.boxes[index] for index in chosen])


def load_pedestrians(root: Path) -> Pedestrians:
    """Read the Penn-Fudan data set: `PNGImages/NAME.png`, and in `PedMasks/NAME_mask.png` one number per pedestrian.

    Raises:
        TrainingConfigError: There is no such folder, it is empty, or a mask is missing or of another size.
    """
    files = sorted((root / IMAGES).glob("*.png"))
    if not files:
        raise TrainingConfigError(
            f"No images in {root / IMAGES}. Unpack the Penn-Fudan data set there: {IMAGES}/ and {MASKS}/ side by side."
        )
    images, boxes = [], []
    for file in files:
        mask_file = root / MASKS / f"{file.stem}_mask.png"
        if not mask_file.is_file():
            raise TrainingConfigError(f"{file} has no mask: expected {mask_file}.")
        image, mask = np.array(Image.open(file).convert("RGB")), np.array(Image.open(mask_file))
        if image.shape[:2] != mask.shape[:2]:
            raise TrainingConfigError(f"{mask_file} has the size {mask.shape[:2]}, its image {image.shape[:2]}.")
        images.append(torch.from_numpy(image).permute(2, 0, 1).contiguous())
        boxes.append(boxes_of(torch.from_numpy(mask.astype(np.int64))))
    return Pedestrians(images, boxes)


def boxes_of(mask: Tensor) -> Tensor:
    """Boxes (G, 4) around the pixels of each number but 0 of a mask (H, W); flat ones are left out."""
    found = []
    for number in mask.unique().tolist():
        rows, columns = (mask == number).nonzero(as_tuple=True)
        if number and rows.min() < rows.max() and columns.min() < columns.max():
            found.append([columns.min(), rows.min(), columns.max(), rows.max()])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


class LastFeatureMap(nn.Module):
    """A classifier as the backbone of a detector: its last feature map, before pooling and classifier.

    Which layer that is, is found by running an image; what comes after it never runs.

    Args:
        network: Classifier of images of any size.

    Attributes:
        out_channels: Channels of the feature map.

    Raises:
        ParamInitError: The network cannot run on images of another size, or has no feature map.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layer, self.out_channels = _last_map(network)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, C, h, w)."""
        handle = self.network.get_submodule(self.layer).register_forward_hook(_stop)
        try:
            self.network(images)
        except _ReachedError as reached:
            return reached.features
        finally:
            handle.remove()
        raise AssertionError(f"{self.layer} was not run")


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose output is wanted."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


def _stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
    raise _ReachedError(output)


@torch.no_grad()
def _last_map(network: nn.Module) -> tuple[str, int]:
    """Name of the last module in execution order that puts out a map of more than one pixel, and its channels."""
    last: list[tuple[str, int]] = []
    paths = {module: path for path, module in network.named_modules() if path}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1
        if is_map and not isinstance(module, nn.AdaptiveAvgPool2d):
            last.append((paths[module], output.shape[1]))

    handles = [module.register_forward_hook(note) for module in paths]
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    try:
        network.eval()(torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ParamInitError(
            f"{type(network).__name__} cannot be the backbone of a detector: it does not run on images of "
            f"{PROBE_SIDE} pixels ({error})."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not last:
        raise ParamInitError(
            f"{type(network).__name__} cannot be the backbone of a detector: none of its layers puts out a feature map."
        )
    return last[-1]


def build_detector(network: nn.Module, sides: tuple[int, int] = SIDES) -> nn.Module:
    """Faster R-CNN on the last feature map of a network; its own heads are drawn from torch's random state.

    Raises:
        ParamInitError: The network cannot be a backbone.
        MissingDependencyError: torchvision is not installed.
    """
    detection, ops = _torchvision()
    return detection.FasterRCNN(
        LastFeatureMap(network),
        num_classes=NUM_CLASSES,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(sizes=(ANCHOR_SIDES,), aspect_ratios=(ANCHOR_RATIOS,)),
        box_roi_pool=ops.MultiScaleRoIAlign(featmap_names=["0"], output_size=7, sampling_ratio=2),
        min_size=sides[0],
        max_size=sides[1],
    )


class DetectionTraining(nn.Module):
    """The objective: the sum of a detector's losses.

    Args:
        detector: As `build_detector` makes it.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: tuple[Sequence[Tensor], Sequence[Target]]) -> dict[str, Tensor]:
        """Return `loss` and its parts, of images (3, H, W) in 0..1 and their boxes and labels."""
        device = next(self.parameters()).device
        images = [image.to(device) for image in batch[0]]
        targets = [{name: value.to(device) for name, value in target.items()} for target in batch[1]]
        losses = self.detector(images, targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


@dataclass(frozen=True, eq=False)
class DetectionBatches:
    """Pure function from a batch index to images, mirrored at random, and their boxes."""

    data: Pedestrians
    batch_size: int
    seed: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return max(1, len(self.data.images) // self.batch_size)

    def __call__(self, index: int) -> tuple[list[Tensor], list[Target]]:
        epoch, position = divmod(index, self.per_epoch)
        generator = seeded_generator(self.seed, "detection", str(epoch))
        order = torch.randperm(len(self.data.images), generator=generator).tolist()
        flips = (torch.rand(len(order), generator=generator) < 0.5).tolist()
        images, targets = [], []
        for chosen in order[position * self.batch_size : (position + 1) * self.batch_size]:
            image, boxes = self.data.images[chosen].float() / 255, self.data.boxes[chosen]
            if flips[chosen]:
                image, boxes = image.flip(2), mirrored(boxes, image.shape[2])
            images.append(image)
            targets.append({"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)})
        return images, targets


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (G, 4) of the mirrored image."""
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], 1)


@dataclass(frozen=True, kw_only=True)
class DetectionExperiment:
    """Average precision of each network as a backbone, from each start.

    Attributes:
        root: Folder of the data set.
        starts: By label.
        protocol: How to train.
        folder: Where runs keep checkpoints and metrics.
        cpu: Stay on the CPU even when there is a GPU.
    """

    root: Path
    starts: dict[str, Start]
    protocol: DetectionProtocol
    folder: Path
    cpu: bool = False

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results."""
        start = self.starts[cell.init]
        facts = {
            "protocol": asdict(self.protocol),
            "init": [start.init, dict(start.settings), start.digest],
            "data": str(self.root.resolve()),
        }
        return cell_key("detection", cell, facts)

    def compute(self, cell: NetworkCell) -> Record:
        """Build, predict, train a detector, test it."""
        start, protocol = self.starts[cell.init], self.protocol
        training, test = load_pedestrians(self.root).split(protocol.num_test, seed=cell.seed)
        network = cell.network.build()
        report = initialize(network, start.init, seed=cell.seed, distributed="off", **start.settings)
        batches = DetectionBatches(training, protocol.batch_size, seed=cell.seed)
        steps_per_epoch = max(1, batches.per_epoch // int(os.environ.get("WORLD_SIZE", "1")))
        trained = train(
            DetectionTraining(build_detector(network, protocol.sides)),
            batches,
            TrainingConfig(
                output=str(self.folder / "runs" / self.key(cell)),
                steps=protocol.epochs * steps_per_epoch,
                learning_rate=protocol.learning_rate,
                weight_decay=protocol.weight_decay,
                warmup_steps=0,
                gradient_clip=10.0,  # the tutorial has none; one bad proposal of an untrained head can be huge
                log_every=steps_per_epoch,
                checkpoint_every=steps_per_epoch,
                keep_checkpoints=1,
                seed=cell.seed,
                cpu=self.cpu,
            ),
            optimizer=lambda module: torch.optim.SGD(
                module.parameters(), protocol.learning_rate, momentum=0.9, weight_decay=protocol.weight_decay
            ),
            schedule=lambda optimizer, config: LambdaLR(optimizer, lambda step: 0.1 ** (step // (3 * steps_per_epoch))),
        )
        assert isinstance(trained, DetectionTraining)
        return {**precisions(trained.detector, test), "coverage": report.coverage_elements}


@torch.no_grad()
def precisions(detector: nn.Module, data: Pedestrians) -> dict[str, float]:
    """Average precision in percent: `ap` over COCO's ten thresholds of overlap, `ap50` at 0.5."""
    detector.eval()
    device = next(detector.parameters()).device
    found = []
    for image, boxes in zip(data.images, data.boxes, strict=True):
        (result,) = detector([image.to(device).float() / 255])
        best = result["scores"].argsort(descending=True)[:MAX_DETECTIONS]
        found.append((result["boxes"][best].cpu(), result["scores"][best].cpu(), boxes))
    values = [100 * average_precision(found, threshold) for threshold in IOU_THRESHOLDS]
    return {"ap": sum(values) / len(values), "ap50": values[0]}


def average_precision(found: Sequence[tuple[Tensor, Tensor, Tensor]], threshold: float) -> float:
    """Area under the precision-recall curve of one class, at COCO's 101 levels of recall.

    Args:
        found: Per image the boxes found (B, 4), best first, their scores (B,), and the boxes that are there (G, 4).
        threshold: Overlap (intersection over union) from which a box counts as found.

    Returns:
        0..1; NaN if there is no box at all.
    """
    num_boxes = sum(len(true) for _, _, true in found)
    if num_boxes == 0:
        return math.nan
    scores = torch.cat([scores for _, scores, _ in found])
    hits = torch.tensor([hit for boxes, _, true in found for hit in _matches(boxes, true, threshold)], dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    true_positives = hits[order].cumsum(0).double()
    recall = true_positives / num_boxes
    precision = true_positives / torch.arange(1, len(order) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(order) else precision
    levels = torch.linspace(0, 1, RECALL_LEVELS, dtype=torch.float64)
    first = torch.searchsorted(recall, levels)
    return float(torch.cat([envelope, torch.zeros(1, dtype=torch.float64)])[first].mean())


def _matches(boxes: Tensor, true: Tensor, threshold: float) -> Iterator[bool]:
    """Whether each box found, best first, overlaps a box that no better one has taken."""
    overlaps = _overlaps(boxes, true)
    is_free = torch.ones(len(true), dtype=torch.bool)
    for row in overlaps:
        free = torch.where(is_free, row, -1.0)
        best = int(free.argmax()) if len(true) else -1
        is_hit = best >= 0 and float(free[best]) >= threshold
        if is_hit:
            is_free[best] = False
        yield is_hit


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (B, G)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (high - low).clamp_min(0).prod(2)
    areas = [(part[:, 2:] - part[:, :2]).prod(1) for part in (boxes, others)]
    return intersection / (areas[0][:, None] + areas[1][None] - intersection).clamp_min(1e-9)


def _torchvision() -> tuple[Any, Any]:
    try:
        from torchvision import ops
        from torchvision.models import detection
    except ImportError as error:
        raise MissingDependencyError(
            "Detection needs torchvision, which is not installed: pip install torchvision."
        ) from error
    return detection, ops
