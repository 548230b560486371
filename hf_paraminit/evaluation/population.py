"""Populations of networks under one protocol: before any training, while fine-tuning, and as an ensemble.

It knows nothing of where the weights come from: state dicts of sampled networks, of copied zoo members, of anything.
Every network is a cell that can be kept: it is known by the values that it starts from, not by how they were made.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.batchnorm import recalibrate_batchnorm
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.kept_results import KeptResults, tensors_digest
from hf_paraminit.evaluation.learning_curve import Recipe, accuracy, learning_curve
from hf_paraminit.evaluation.tasks import Task

CONDITIONING_BATCHES = 50  # at most; the follow-up of SANE uses 50, the published code 200
_EVALUATED_AT_ONCE = 500  # images
_LOGITS = "<f4"  # in records, as base64: decimal numbers would take several times the room


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
    kept: KeptResults | None = None,
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
        kept: Where finished networks are found and kept; its facts say which network `build` makes and which data
            the task has.

    Raises:
        TrainingConfigError: No networks, or weights of which none fits.
    """
    if not states:
        raise TrainingConfigError(f"The population {label!r} has no networks.")
    steps = sorted({0, *recipe.evaluate_at})
    whole = replace(recipe, evaluate_at=steps)
    kept = kept or KeptResults()
    records = []
    for number, state in enumerate(states):
        cell = {"kind": "network", "population": label, "number": number, "seed": seed}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            model = build()
            _load(label, model, state)
            fine_tune = partial(_fine_tune, model, task, whole, seed=seed + number)
            start = tensors_digest(model.state_dict())
            records.append(kept.result(cell, fine_tune, start=start, recipe=asdict(whole)))
    num_images = len(task.test[1])
    logits = {
        step: torch.stack([_decoded(record["logits"][str(step)], num_images) for record in records])
        for step in (0, steps[-1])
    }
    return Population(
        label=label,
        curves=tuple({int(step): value for step, value in record["curve"].items()} for record in records),
        ensemble={step: _percent(scores.mean(0).argmax(-1) == task.test[1]) for step, scores in logits.items()},
        disagreement={step: _disagreement(scores) for step, scores in logits.items()},
    )


def _fine_tune(model: nn.Module, task: Task, recipe: Recipe, *, seed: int) -> Record:
    """Accuracies of a network while it learns, its logits before and after; keys of JSON objects are text."""
    recalibrate_batchnorm(model, task.train[0].split(recipe.batch_size), num_batches=CONDITIONING_BATCHES)
    before = _logits(model, task.test[0])
    curve = learning_curve(model, task.train, task.test, recipe, seed=seed)
    after = _logits(model, task.test[0])
    return {
        "curve": {str(step): value for step, value in curve.items()},
        "logits": {"0": _encoded(before), str(recipe.evaluate_at[-1]): _encoded(after)},
    }


def validation_score(
    build: Callable[[], nn.Module], task: Task, *, batch_size: int, seed: int = 0, kept: KeptResults | None = None
) -> Callable[[Mapping[str, Tensor]], float]:
    """What candidates are chosen by: accuracy in percent on the validation block before any training.

    Weights are treated as `evaluate_population` treats them.

    Args:
        build: Makes a network with its own start, which tensors keep that a candidate lacks.
        task: Its test block is not looked at.
        batch_size: Images per batch of the estimate of batch-norm statistics.
        seed: Of the own start.
        kept: As `evaluate_population` takes it; equal candidates are scored once.
    """
    kept = kept or KeptResults()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def score(state: Mapping[str, Tensor]) -> float:
        model.load_state_dict(own)
        _load("candidates", model, state)
        start = tensors_digest(model.state_dict())
        record = kept.result({"kind": "candidate"}, measure, start=start, batch_size=batch_size)
        found: float = record["accuracy"]
        return found

    def measure() -> Record:
        recalibrate_batchnorm(model, task.train[0].split(batch_size), num_batches=CONDITIONING_BATCHES)
        return {"accuracy": accuracy(model, task.validation)}

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


def _encoded(logits: Tensor) -> str:
    return base64.b64encode(logits.float().numpy().astype(_LOGITS).tobytes()).decode()


def _decoded(text: str, num_images: int) -> Tensor:
    """(images, classes), to the bit what was encoded."""
    values = np.frombuffer(base64.b64decode(text), dtype=_LOGITS).astype(np.float32)
    return torch.from_numpy(values).reshape(num_images, -1)


def _disagreement(logits: Tensor) -> float:
    """Of (N, images, classes)."""
    answers = logits.argmax(-1)
    pairs = [_percent(first != second) for first, second in combinations(answers, 2)]
    return statistics.mean(pairs) if pairs else 0.0


def _percent(hits: Tensor) -> float:
    return 100 * hits.float().mean().item()
