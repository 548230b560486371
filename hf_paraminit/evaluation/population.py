"""Populations of networks under one protocol: before any training, while fine-tuning, and as an ensemble.

It knows nothing of where the weights come from: state dicts of sampled networks, of copied zoo members, of anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.batchnorm import recalibrate_batchnorm
from hf_paraminit.evaluation.learning_curve import Recipe, accuracy, learning_curve
from hf_paraminit.evaluation.tasks import Task

CONDITIONING_BATCHES = 50  # at most; the follow-up of SANE uses 50, the published code 200
_EVALUATED_AT_ONCE = 500  # images


@dataclass(frozen=True, kw_only=True)
class Population:
    """What a population did.

    Attributes:
        label: What tables call it.
        curves: Of each network, accuracy in percent by optimiser step; step 0 is before training.
        ensemble: Accuracy in percent of the mean of all logits, at the first and at the last step.
        disagreement: Share of test images, in percent, that two networks classify differently, mean over pairs;
            likewise. 0 for copies of one network.
    """

    label: str
    curves: tuple[Mapping[int, float], ...]
    ensemble: Mapping[int, float]
    disagreement: Mapping[int, float]

    def mean(self, step: int) -> float:
        """Mean accuracy in percent at a step."""
        return statistics.mean(curve[step] for curve in self.curves)

    def deviation(self, step: int) -> float:
        """Its standard deviation over networks; 0 for a single one."""
        values = [curve[step] for curve in self.curves]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values; keys of JSON objects are text."""
        summary = {str(step): [self.mean(step), self.deviation(step)] for step in self.curves[0]}
        return {
            "label": self.label,
            "accuracy": summary,
            "ensemble": {str(step): value for step, value in self.ensemble.items()},
            "disagreement": {str(step): value for step, value in self.disagreement.items()},
            "curves": [{str(step): value for step, value in curve.items()} for curve in self.curves],
        }


def evaluate_population(
    label: str,
    build: Callable[[], nn.Module],
    states: Sequence[Mapping[str, Tensor] | None],
    task: Task,
    recipe: Recipe,
    *,
    seed: int = 0,
) -> Population:
    """Score networks before training and fine-tune them, each with the same recipe.

    Batch-norm statistics are first estimated from training images, for all populations alike. A tensor whose shape is
    another one, as that of a classifier for other classes, keeps the network's own start. Network i sees its images in
    the order that network i of every other population sees.

    Args:
        label: What tables call the population.
        build: Makes a network with its own start.
        states: Part of a state dict for each network; None for its own start.
        task: What is learned; another task than the zoo's measures transfer.
        recipe: How.
        seed: Of own starts and of the order of images.

    Raises:
        TrainingConfigError: No networks, or weights of which none fits.
    """
    if not states:
        raise TrainingConfigError(f"The population {label!r} has no networks.")
    steps = sorted({0, *recipe.evaluate_at})
    whole = replace(recipe, evaluate_at=steps)
    curves, first, last = [], [], []
    for number, state in enumerate(states):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            model = build()
            _load(label, model, state)
            recalibrate_batchnorm(model, task.train[0].split(recipe.batch_size), num_batches=CONDITIONING_BATCHES)
            first.append(_logits(model, task.test[0]))
            curves.append(learning_curve(model, task.train, task.test, whole, seed=seed + number))
            last.append(_logits(model, task.test[0]))
    logits = {0: torch.stack(first), steps[-1]: torch.stack(last)}
    return Population(
        label=label,
        curves=tuple(curves),
        ensemble={step: _percent(scores.mean(0).argmax(-1) == task.test[1]) for step, scores in logits.items()},
        disagreement={step: _disagreement(scores) for step, scores in logits.items()},
    )


def validation_score(
    build: Callable[[], nn.Module], task: Task, *, batch_size: int, seed: int = 0
) -> Callable[[Mapping[str, Tensor]], float]:
    """What candidates are chosen by: accuracy in percent on the validation block before any training.

    Weights are treated as `evaluate_population` treats them.

    Args:
        build: Makes a network with its own start, which tensors keep that a candidate lacks.
        task: Its test block is not looked at.
        batch_size: Images per batch of the estimate of batch-norm statistics.
        seed: Of the own start.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def score(state: Mapping[str, Tensor]) -> float:
        model.load_state_dict(own)
        _load("candidates", model, state)
        recalibrate_batchnorm(model, task.train[0].split(batch_size), num_batches=CONDITIONING_BATCHES)
        return accuracy(model, task.validation)

    return score


def _load(label: str, model: nn.Module, state: Mapping[str, Tensor] | None) -> None:
    if state is None:
        return
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise TrainingConfigError(
            f"The population {label!r}: none of {len(state)} tensors fits the network, {type(model).__name__}. They "
            "are of another architecture."
        )
    model.load_state_dict(fitting, strict=False)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(part) for part in images.split(_EVALUATED_AT_ONCE)])


def _disagreement(logits: Tensor) -> float:
    """Of (N, images, classes)."""
    answers = logits.argmax(-1)
    pairs = [_percent(first != second) for first, second in combinations(answers, 2)]
    return statistics.mean(pairs) if pairs else 0.0


def _percent(hits: Tensor) -> float:
    return 100 * hits.float().mean().item()
