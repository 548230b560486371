"""Training one image classifier, the baseline that predicted weights are measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LabelledBatch = tuple[Tensor, Tensor]

# What ppuda trains networks of DeepNets-1M with (arXiv 2110.13100, appendix C.1).
SGD_LEARNING_RATE, SGD_MOMENTUM, SGD_WEIGHT_DECAY = 0.025, 0.9, 3e-4
AUXILIARY_WEIGHT = 0.4  # DARTS (arXiv 1806.09055)


class ClassifierTraining(nn.Module):
    """Cross entropy of a network, and of its auxiliary classifier where it gives (logits, auxiliary logits).

    Args:
        network: Maps images to logits.
        label_smoothing: Of the targets.
    """

    def __init__(self, network: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing

    def forward(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy`."""
        device = next(self.network.parameters()).device
        images, labels = (tensor.to(device) for tensor in batch)
        logits, auxiliary = _outputs(self.network(images))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if auxiliary is not None:
            loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == labels).float().mean()}


def sgd(learning_rate: float, weight_decay: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return the `optimizer` argument of the training loop: SGD with momentum 0.9."""
    return lambda model: torch.optim.SGD(
        model.parameters(), learning_rate, momentum=SGD_MOMENTUM, weight_decay=weight_decay
    )


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
