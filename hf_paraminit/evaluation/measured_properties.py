"""The four properties of a network that GHN-2's embeddings are asked to predict, measured by a short training."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from hf_paraminit.evaluation.class_scores import ClassScores
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.learning_curve import Recipe, accuracy, learning_curve, steps_to_reach
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, cell_key
from hf_paraminit.evaluation.tasks import published_noise

CONVERGED = 0.95  # share of the final accuracy at which a training counts as converged
REPETITIONS = 5
TIMING_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class MeasuringExperiment:
    """Train each network from its own start and measure it.

    Attributes:
        images: The data; accuracies are those of the evaluated block.
        recipe: How to train.
        data_digest: Of the images.
    """

    images: Images
    recipe: Recipe = field(default_factory=lambda: Recipe(learning_rate=1e-3))
    data_digest: str = ""

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results."""
        facts = {
            "recipe": asdict(self.recipe),
            "data": [self.data_digest, self.images.block],
            "noise": published_noise(self.images.size),
        }
        return cell_key("properties", cell, facts)

    def compute(self, cell: NetworkCell) -> Record:
        """Measure the four properties; times are this machine's."""
        task = self.images.task
        images, labels = task.block(self.images.block)
        network = ClassScores(cell.network.build())
        started = time.perf_counter()
        curve = learning_curve(network, task.train, (images, labels), self.recipe, seed=cell.seed)
        seconds = time.perf_counter() - started
        final = accuracy(network, (images, labels))
        reached = steps_to_reach(curve, CONVERGED * final)
        noisy = task.noisy(self.images.block, published_noise(self.images.size))
        return {
            "curve": {str(step): value for step, value in curve.items()},
            "val_acc": final,
            "val_acc_noise": accuracy(network, noisy),
            "time": inference_milliseconds(network, images[:TIMING_BATCH]),
            "converge_time": seconds * (self.recipe.steps if reached is None else reached) / self.recipe.steps,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }


@torch.no_grad()
def inference_milliseconds(network: nn.Module, images: Tensor) -> float:
    """Median wall time of a forward pass in eval mode."""
    network.eval()
    network(images)
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)
