"""Training a network from predicted weights: the fine-tuning protocols of GHN-2 and GHN-3.

Runs use the package's one training loop, so they take any number of devices and go on where they were interrupted.
Images up to 64 pixels are augmented as published for CIFAR-10, larger ones as for ImageNet: see `EpochBatches`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchvision.transforms import v2

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.class_scores import ClassScores, top_accuracies
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.features import find_classifier
from hf_paraminit.evaluation.learning_curve import LabelledImages
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, cell_key
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.training.augmentation import SMALL_SIDE, cropped_and_flipped, seeded
from hf_paraminit.training.loop import TrainingConfig, train

FORMAT = 3  # of records and checkpoints: earlier ones drew the order of the images or their augmentation otherwise
EVALUATION_BATCH = 250
CHECKPOINT_STEPS = 100  # fewest between checkpoints; short epochs share one


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """How to train from predicted weights.

    Attributes:
        epochs: Passes over the training images.
        optimizer: "sgd" with momentum, or "adamw".
        learning_rate: At the start.
        momentum: Of SGD.
        weight_decay: Of the optimiser.
        batch_size: Images per step and process.
        schedule: "cosine" to zero, or "steps", a tenth at one and two thirds; both change between epochs.
        label_smoothing: Of the cross entropy.
        gradient_clip: Largest global L2 norm.
        shots: Training images per class, the first in the order of the data; None for all.
        predicts_classifier: Whether the class layers are predicted too, or keep their own start.
        is_augmented: Random crops and flips of training images, which crops depending on their size: `EpochBatches`.
    """

    epochs: int = 50
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 1e-3
    batch_size: int = 96
    schedule: Literal["cosine", "steps"] = "cosine"
    label_smoothing: float = 0.0
    gradient_clip: float = 5.0
    shots: int | None = None
    predicts_classifier: bool = False
    is_augmented: bool = True

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least 1, found {getattr(self, name)}"
            for name in ("epochs", "batch_size")
            if getattr(self, name) < 1
        ]
        if self.shots is not None and self.shots < 1:
            faults.append(f"shots must be at least 1 or None, found {self.shots}")
        faults += [
            f"{name} must be finite and at least 0, found {getattr(self, name)}"
            for name in ("learning_rate", "momentum", "weight_decay", "label_smoothing")
            if not 0 <= getattr(self, name) < math.inf
        ]
        for name, known in (("optimizer", ("sgd", "adamw")), ("schedule", ("cosine", "steps"))):
            if getattr(self, name) not in known:
                faults.append(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}")
        if faults:
            raise TrainingConfigError(f"Cannot fine-tune: {'; '.join(faults)}.")


# GHN-3's code for ImageNet (from scratch: rate 0.1), and GHN-2's for 100 images of each class of CIFAR-10.
PROTOCOLS: Mapping[str, FineTuning] = {
    "full": FineTuning(
        epochs=90,
        weight_decay=1e-4,
        batch_size=128,
        schedule="steps",
        label_smoothing=0.1,
        predicts_classifier=True,
    ),
    "few-shot": FineTuning(shots=100),
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where fine-tuning starts.

    Attributes:
        label: What tables call it.
        init: Value of `init=`; None for the network's own start.
        settings: Of the initializer.
        digest: Of a predictor's weights.
        reads_graphs: Whether it is a graph hypernetwork, which can leave the class layers out.
    """

    label: str
    init: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    reads_graphs: bool = False


@dataclass(frozen=True, kw_only=True)
class FineTuningExperiment:
    """Accuracy by epoch, of each network from each start.

    Attributes:
        images: The data.
        starts: By label.
        protocol: How to train.
        folder: Where runs keep checkpoints, metrics and the trained weights.
        data_digest: Of the images.
        cpu: Stay on the CPU even when there is a GPU.
    """

    images: Images
    starts: Mapping[str, Start]
    protocol: FineTuning
    folder: Path
    data_digest: str = ""
    cpu: bool = False

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results."""
        start = self.starts[cell.init]
        facts = {
            "protocol": asdict(self.protocol),
            "init": [start.init, dict(start.settings), start.digest],
            "data": [self.data_digest, self.images.block],
            "format": FORMAT,
        }
        return cell_key("fine-tuning", cell, facts)

    def compute(self, cell: NetworkCell) -> Record:
        """Build, predict, train, evaluate after each epoch."""
        start, task = self.starts[cell.init], self.images.task
        network = cell.network.build()
        names = None if self.protocol.predicts_classifier else names_without_classifier(network)
        report = initialize(network, start.init, names=names, seed=cell.seed, distributed="off", **start.settings)
        data = task.train if self.protocol.shots is None else first_of_each_class(task.train, self.protocol.shots)
        folder = self.folder / "runs" / self.key(cell)
        curve = fine_tune(
            network, data, task.block(self.images.block), self.protocol, folder=folder, seed=cell.seed, cpu=self.cpu
        )
        return {
            "curve": {str(epoch): value for epoch, value in curve.items()},
            "final": curve[max(curve)],
            "images": len(data[0]),
            "coverage": report.coverage_elements,
            "weights": str(Path("runs") / self.key(cell) / "model.safetensors"),
        }


def fine_tune(
    network: nn.Module,
    data: LabelledImages,
    test: LabelledImages,
    protocol: FineTuning,
    *,
    folder: Path,
    seed: int = 0,
    cpu: bool = False,
) -> dict[int, float]:
    """Train a network in place; a run that was interrupted goes on from its newest checkpoint.

    Args:
        network: Classifier of images; its start is the caller's.
        data: Images (N, C, S, S) and labels (N,) to train on.
        test: What is evaluated on, as it is: `load_task` has resized larger images and taken their middle.
        protocol: How.
        folder: Gets `metrics.jsonl`, `checkpoints/` while it runs and `model.safetensors` at the end.
        seed: Of the order of the images and of augmentation.
        cpu: Stay on the CPU even when there is a GPU.

    Returns:
        Test accuracy in percent by finished epochs; 0 is before the first.
    """
    batches = EpochBatches(data, protocol.batch_size, seed=seed, is_augmented=protocol.is_augmented)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps_per_epoch = max(1, batches.per_epoch // processes)
    curve = Curve(test, steps_per_epoch)
    model = Classification(network, protocol.label_smoothing)
    curve.take(model, 0)
    trained = train(
        model,
        batches,
        TrainingConfig(
            output=str(folder),
            steps=protocol.epochs * steps_per_epoch,
            learning_rate=protocol.learning_rate,
            weight_decay=protocol.weight_decay,
            warmup_steps=0,
            gradient_clip=protocol.gradient_clip,
            log_every=steps_per_epoch,
            checkpoint_every=max(steps_per_epoch, CHECKPOINT_STEPS),
            keep_checkpoints=1,
            seed=seed,
            cpu=cpu,
        ),
        optimizer=lambda module: _optimizer(module, protocol),
        schedule=lambda optimizer, config: _schedule(optimizer, protocol, steps_per_epoch),
        after_step=curve.after_step,
        stateful=[curve],
    )
    assert isinstance(trained, Classification)
    if int(os.environ.get("RANK", "0")) == 0:
        with atomic_write(folder / "model.safetensors") as temporary:
            save_model(trained.scores.network, str(temporary))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return dict(curve.points)


class Classification(nn.Module):
    """The objective: cross entropy of class scores.

    Args:
        network: Classifier of images.
        label_smoothing: Of the targets.
    """

    def __init__(self, network: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.scores = ClassScores(network)
        self.label_smoothing = label_smoothing

    def forward(self, batch: LabelledImages) -> dict[str, Tensor]:
        """Return `loss` and `accuracy` (0..1) of images (B, C, S, S) and labels (B,)."""
        device = next(self.parameters()).device
        images, labels = batch[0].to(device), batch[1].to(device)
        scores = self.scores(images)
        return {
            "loss": F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing),
            "accuracy": (scores.argmax(1) == labels).float().mean(),
        }


@dataclass(frozen=True, eq=False)
class EpochBatches:
    """Pure function from a batch index to images and labels: each epoch in another order, incomplete batches left out.

    Augmentation follows the published pipelines of GHN-2 and GHN-3 (their `train_net` and `train_ddp`). Images up to 64
    pixels, CIFAR-10: a window after padding by 4 pixels, and flips. Larger ones, ImageNet: a part of random area and
    aspect, resized to the size of the images, and flips; no change of colours, which only the training of predictors
    has. The parts are of the images as they are given, so what `load_task` cuts off outside the middle is never seen.

    Attributes:
        data: Images (N, C, S, S) and labels (N,).
        batch_size: B; all images if there are fewer.
        seed: Of order and augmentation.
        is_augmented: Whether images are cropped and flipped at random.
    """

    data: LabelledImages
    batch_size: int
    seed: int = 0
    is_augmented: bool = True

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return max(1, len(self.data[0]) // self.batch_size)

    def __call__(self, index: int) -> LabelledImages:
        epoch, position = divmod(index, self.per_epoch)
        with seeded(self.seed, 0, epoch):
            order = torch.randperm(len(self.data[0]))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        images = self.data[0][chosen]
        if self.is_augmented:
            is_small = max(images.shape[-2:]) <= SMALL_SIDE
            with seeded(self.seed, 1, index):
                images = cropped_and_flipped(images) if is_small else resized_parts(images)
        return images, self.data[1][chosen]


def resized_parts(images: Tensor) -> Tensor:
    """Resize a part of each image (B, C, H, W) to the whole, and mirror every second one.

    A part has 8 to 100 % of the area and an aspect of 3/4 to 4/3, the defaults of torchvision. Resizing is linear, so
    images may be normalised already. Draws come from torch's global generator.
    """
    augment = v2.Compose([v2.RandomResizedCrop(images.shape[-2:]), v2.RandomHorizontalFlip()])
    return torch.stack([augment(image) for image in images])


class Curve:
    """Accuracy after each epoch, kept in every checkpoint.

    Args:
        test: What is evaluated on.
        steps_per_epoch: Optimiser steps of an epoch.

    Attributes:
        points: Accuracy in percent by finished epochs.
    """

    def __init__(self, test: LabelledImages, steps_per_epoch: int) -> None:
        self.test = test
        self.steps_per_epoch = steps_per_epoch
        self.points: dict[int, float] = {}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Evaluate at the end of an epoch."""
        if step % self.steps_per_epoch == 0:
            self.take(module, step // self.steps_per_epoch)

    def take(self, module: nn.Module, epoch: int) -> None:
        """Evaluate now."""
        assert isinstance(module, Classification)
        module.eval()
        found = top_accuracies(module.scores, self.test, batch_size=EVALUATION_BATCH, ranks=(1,))
        self.points[epoch] = found["top1"]

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"points": dict(self.points)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.points = dict(state["points"])


def first_of_each_class(data: LabelledImages, count: int) -> LabelledImages:
    """The first images of each class in the order of the data.

    Raises:
        TrainingConfigError: A class has fewer.
    """
    images, labels = data
    members = {int(label): (labels == label).nonzero().flatten() for label in labels.unique()}
    short = {label: len(found) for label, found in members.items() if len(found) < count}
    if short:
        raise TrainingConfigError(
            f"Cannot take {count} training images of each class: "
            f"{', '.join(f'class {label} has {found}' for label, found in list(short.items())[:5])}."
        )
    chosen = torch.cat([found[:count] for found in members.values()]).sort().values
    return images[chosen], labels[chosen]


def names_without_classifier(network: nn.Module) -> list[str]:
    """All parameters but those of the layer that emits class scores."""
    classifier = find_classifier(network)
    own = {id(parameter) for parameter in classifier.parameters()} if classifier is not None else set()
    return [name for name, parameter in network.named_parameters() if id(parameter) not in own]


def adapted(protocol: FineTuning, **changes: Any) -> FineTuning:
    """A protocol with some settings changed; those that are None stay."""
    return dataclasses.replace(protocol, **{name: value for name, value in changes.items() if value is not None})


def _optimizer(module: nn.Module, protocol: FineTuning) -> torch.optim.Optimizer:
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(module.parameters(), protocol.learning_rate, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(
        module.parameters(), protocol.learning_rate, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )


def _schedule(optimizer: torch.optim.Optimizer, protocol: FineTuning, steps_per_epoch: int) -> LRScheduler:
    def factor(step: int) -> float:
        share = step // steps_per_epoch / protocol.epochs
        if protocol.schedule == "cosine":
            return (1 + math.cos(math.pi * share)) / 2
        return 0.1 ** ((share >= 1 / 3) + (share >= 2 / 3))

    return LambdaLR(optimizer, factor)
