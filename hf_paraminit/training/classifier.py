"""Training one image classifier, the baseline that predicted weights are measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.schedules import epoch_at

LabelledBatch = tuple[Tensor, Tensor]
OptimizerName = Literal["sgd", "adamw", "lamb"]
LossName = Literal["cross-entropy", "binary"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
LOSSES: tuple[LossName, ...] = get_args(LossName)

SGD_MOMENTUM = 0.9
AUXILIARY_WEIGHT = 0.4  # DARTS (arXiv 1806.09055)
PRESENT = 0.2  # share of a mixed image from which on a class counts as present ("ResNet strikes back", 2110.00476)


class ClassifierTraining(nn.Module):
    """Loss of a network, and of its auxiliary classifier where it gives (logits, auxiliary logits).

    Args:
        network: Maps images to logits.
        label_smoothing: Of the targets of the cross entropy.
        loss: "cross-entropy", or "binary", where each class is present or not.

    Raises:
        TrainingConfigError: No such loss, or targets of the binary one are to be smoothed.
    """

    def __init__(self, network: nn.Module, *, label_smoothing: float = 0.0, loss: LossName = "cross-entropy") -> None:
        super().__init__()
        if loss not in LOSSES or (loss == "binary" and label_smoothing):
            raise TrainingConfigError(
                f"Loss {loss!r} with label smoothing {label_smoothing}: expected 'cross-entropy', or 'binary' without "
                "smoothing, since there a class is present or not."
            )
        self.network = network
        self.loss: Callable[[Tensor, Tensor], Tensor] = (
            BinaryCrossEntropy(smoothing=0.0, target_threshold=PRESENT)
            if loss == "binary"
            else nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        )

    def forward(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy`.

        Args:
            batch: Images (B, C, S, S) and labels (B,), or (B, K) shares of classes, of which the largest is counted.
        """
        device = next(self.network.parameters()).device
        images, targets = (tensor.to(device) for tensor in batch)
        logits, auxiliary = _outputs(self.network(images))
        loss = self.loss(logits, targets)
        if auxiliary is not None:
            loss = loss + AUXILIARY_WEIGHT * self.loss(auxiliary, targets)
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == labels).float().mean()}


class DropPathSchedule:
    """Raises the drop-path rate of a network epoch by epoch, from 0 (DARTS); kept in every checkpoint.

    Args:
        network: Has a `drop_path_rate`.
        highest: Rate that is reached with the end of the run.
        steps: Steps of the run.
        epochs: Epochs that they are divided into.
    """

    def __init__(self, network: nn.Module, highest: float, *, steps: int, epochs: int) -> None:
        if not 0 <= highest < 1:
            raise TrainingConfigError(f"The drop-path rate must lie in [0, 1), found {highest}.")
        self.network = network
        self.highest, self.steps, self.epochs = highest, steps, epochs
        self.step = 0
        self._apply(network)

    def after_step(self, module: nn.Module, step: int) -> None:
        """Set the rate of the next step; `module` is the `ClassifierTraining`."""
        assert isinstance(module, ClassifierTraining)
        self.step = step
        self._apply(module.network)

    def state_dict(self) -> dict[str, int]:
        """Finished steps."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.step = state["step"]
        self._apply(self.network)

    def _apply(self, network: Any) -> None:
        network.drop_path_rate = self.highest * epoch_at(self.step, self.steps, self.epochs) / self.epochs


def new_optimizer(
    name: OptimizerName, learning_rate: float, weight_decay: float
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return the `optimizer` argument of the training loop.

    Args:
        name: "sgd" with momentum 0.9, which decays all weights as published; "adamw" or "lamb" (arXiv 1904.00962) as
            timm makes them, which decay neither biases nor norms.
        learning_rate: Peak rate.
        weight_decay: Decay.

    Raises:
        TrainingConfigError: There is no such optimiser.
    """
    if name not in OPTIMIZERS:
        raise TrainingConfigError(f"There is no optimiser {name!r}: expected one of {', '.join(OPTIMIZERS)}.")
    if name == "sgd":
        return lambda model: torch.optim.SGD(
            model.parameters(), learning_rate, momentum=SGD_MOMENTUM, weight_decay=weight_decay
        )
    return lambda model: create_optimizer_v2(model, opt=name, lr=learning_rate, weight_decay=weight_decay)


@torch.no_grad()
def accuracy_on(network: nn.Module, batches: Iterator[LabelledBatch]) -> float:
    """Share of images that a network, in eval mode, names right."""
    device = next(network.parameters()).device
    network.eval()
    right = count = 0
    for images, labels in batches:
        logits, _ = _outputs(network(images.to(device)))
        right += int((logits.argmax(1) == labels.to(device)).sum())
        count += len(labels)
    return right / max(1, count)


def _outputs(output: Tensor | tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return (output[0], output[1]) if isinstance(output, tuple) else (output, None)
