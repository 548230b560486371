"""What predicted weights are worth before any training (GHN-2, arXiv 2110.13100, table 3; GHN-3, arXiv 2303.04143)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.batchnorm import recalibrate_batchnorm
from hf_paraminit.evaluation.class_scores import ClassScores, batch_statistics, top_accuracies
from hf_paraminit.evaluation.diversity import diversity
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.features import feature_accuracy
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, Predictor, cell_key
from hf_paraminit.evaluation.tasks import Task
from hf_paraminit.initializers.initialize import initialize

Readout = Literal["head", "cut-head", "features"]
Statistics = Literal["recalibrated", "batch"]

RECALIBRATION_BATCHES = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShot:
    """How predicted weights are evaluated.

    Attributes:
        readout: "head", scores of the predicted classifier, which must have been trained for these classes; "cut-head",
            the same for any number of classes (its rows are left out or repeated); "features", the nearest class mean
            and a logistic regression on the input of the classifier.
        statistics: Of batch norm: "recalibrated", estimated from training images; "batch", those of each test batch, as
            in the published tables. Networks of DeepNets-1M, which keep none, always use those of the batch.
        batch_size: Test images per batch.
        pixel_noise: Standard deviation of noise on the test images' pixels in [0, 1].
    """

    readout: Readout = "head"
    statistics: Statistics = "recalibrated"
    batch_size: int = 64
    pixel_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("readout", get_args(Readout)), ("statistics", get_args(Statistics))):
            if getattr(self, name) not in known:
                raise TrainingConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; expected one of {', '.join(known)}."
                )
        if self.readout == "features" and self.statistics == "batch":
            raise TrainingConfigError("Features are read with fixed batch-norm statistics: recalibrate them.")
        if self.batch_size < 1:
            raise TrainingConfigError(f"Expected a batch of at least 1 image, found {self.batch_size}.")
        if not 0 <= self.pixel_noise < math.inf:
            raise TrainingConfigError(f"Expected pixel noise that is finite and at least 0, found {self.pixel_noise}.")


@dataclass(frozen=True, kw_only=True)
class ZeroShotExperiment:
    """Accuracy without training, of each network under each predictor.

    Attributes:
        images: The data; batch norm is recalibrated on its train block.
        predictors: By label.
        settings: How to evaluate.
        device: Where networks run.
        data_digest: Of the images.
    """

    images: Images
    predictors: Mapping[str, Predictor]
    settings: ZeroShot = field(default_factory=ZeroShot)
    device: str = "cpu"
    data_digest: str = ""

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results."""
        predictor = self.predictors[cell.init]
        facts = {
            "settings": asdict(self.settings),
            "init": [predictor.init, dict(predictor.settings), predictor.digest],
            "data": [self.data_digest, self.images.block],
        }
        return cell_key("accuracy", cell, facts)

    def compute(self, cell: NetworkCell) -> Record:
        """Build, predict, recalibrate, evaluate."""
        predictor = self.predictors[cell.init]
        network = cell.network.build().to(self.device)
        started = time.perf_counter()
        report = initialize(network, predictor.init, seed=cell.seed, distributed="off", **predictor.settings)
        seconds = time.perf_counter() - started
        predicted = {name: network.get_parameter(name) for name in report.predicted}
        return {
            "accuracy": zero_shot_accuracy(network, self.images.task, self.images.block, self.settings),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "parameter_norm": parameter_norm(network),
            "coverage": report.coverage_elements,
            "diversity": diversity([predicted]),
            "seconds": {"total": seconds, **report.seconds},
            "predictor": {"parameters": predictor.parameters, "sha256": report.sha256},
        }


def require_same_classes(predictor: Predictor, task: Task, settings: ZeroShot) -> None:
    """Refuse to read class scores off a predicted classifier that was made for another number of classes.

    Raises:
        TrainingConfigError: The numbers differ.
    """
    if predictor.init is None:
        return
    if settings.readout == "head" and predictor.num_classes != task.num_classes:
        raise TrainingConfigError(
            f"Cannot evaluate class scores: {predictor.label} emits classifiers of {predictor.num_classes} classes, "
            f"{task.name} has {task.num_classes}. Take data of its classes, readout 'features' (which needs no "
            "classifier), or readout 'cut-head' if some of its classes are those of the data."
        )


def zero_shot_accuracy(network: nn.Module, task: Task, block: str, settings: ZeroShot) -> dict[str, float]:
    """Evaluate a network as it is; batch-norm statistics are the only thing that may change in it.

    Args:
        network: Classifier of images, on any device.
        task: The data.
        block: "test" or "validation".
        settings: How to evaluate.

    Returns:
        In percent: `top1`, `top5` (and `finite`, `batch_size`), or `nearest_mean` and `linear` of features.
    """
    data = task.noisy("validation" if block == "validation" else "test", settings.pixel_noise)
    model = ClassScores(network).eval()
    if settings.statistics == "batch":
        with batch_statistics(model):
            return top_accuracies(model, data, batch_size=settings.batch_size)
    batches = task.train[0].split(settings.batch_size)
    recalibrate_batchnorm(model, batches, num_batches=RECALIBRATION_BATCHES)
    if settings.readout == "features":
        return feature_accuracy(network.cpu(), task.train, data)
    return top_accuracies(model, data, batch_size=settings.batch_size)


@torch.no_grad()
def parameter_norm(network: nn.Module) -> float:
    """Square root of the sum of squares of all parameters, as published beside GHN-3's accuracies."""
    norms: Any = torch._foreach_norm([parameter.detach().float() for parameter in network.parameters()])
    return float(torch.stack(norms).norm())
