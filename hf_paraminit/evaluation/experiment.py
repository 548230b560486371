"""One comparison, cut into cells: each is a training or a measurement that depends on nothing but its description."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn

from hf_paraminit import __version__
from hf_paraminit.evaluation.batchnorm import recalibrate_batchnorm
from hf_paraminit.evaluation.cost import measured
from hf_paraminit.evaluation.features import feature_accuracy
from hf_paraminit.evaluation.gradient_flow import gradient_flow
from hf_paraminit.evaluation.hosts import build_network
from hf_paraminit.evaluation.learning_curve import Recipe, accuracy, learning_curve, mean_accuracy
from hf_paraminit.evaluation.nets import Net
from hf_paraminit.evaluation.tasks import Block, Task
from hf_paraminit.evaluation.weight_distribution import weight_distribution
from hf_paraminit.initializers.base import Initializer
from hf_paraminit.initializers.initialize import initialize

Record = dict[str, Any]

PROTOCOL_STEPS = (0, 10, 20, 40, 80, 150)
RECALIBRATION_BATCHES = 15
FORMAT = 1  # of records; a change makes all cells new
OTHER_DRAWS = 10_000  # added to the seed of the weights, not of the data, for the control that should have no effect


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """One way to start, as a row of the tables.

    Attributes:
        label: What tables call it.
        init: Value of `init=`; None for the model's own default.
        settings: Of the initializer.
        is_strong: Start from the strongest trivial variant of the architecture.
        is_redrawn: Draw the default from another seed, with the data in the same order.
        is_recalibrated: Estimate batch-norm statistics from training images before the first step.
        predictors: Digests of the trained predictors that it runs; another file under the same name is another start.
    """

    label: str
    init: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_strong: bool = False
    is_redrawn: bool = False
    is_recalibrated: bool = False
    predictors: tuple[str, ...] = ()

    @property
    def description(self) -> Record:
        """JSON values that identify it; a function is known by its name only."""
        init = self.init
        if isinstance(init, Initializer):
            init = [init.identifier, dataclasses.asdict(init.config)]
        elif callable(init):
            init = f"{getattr(init, '__module__', '')}.{getattr(init, '__qualname__', type(init).__name__)}"
        flags = [self.is_strong, self.is_redrawn, self.is_recalibrated]
        return {
            "init": init,
            "settings": dict(self.settings),
            "flags": flags,
            "predictors": list(self.predictors),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What to compute.

    Attributes:
        kind: "training" for a learning curve, "start" for what can be measured before the first step.
        net: Name of the network.
        init: Label of the initialisation.
        seed: Of the weights and of the order of the images.
        factor: Learning rate over the network's base rate.
        block: What is evaluated on.
    """

    kind: Literal["training", "start"]
    net: str
    init: str
    seed: int
    factor: float = 1.0
    block: Block = "test"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that cells share.

    Attributes:
        task: The data.
        nets: Networks by name.
        inits: Initialisations by label.
        recipe: How every network is trained; the learning rate is each network's own.
        graph_hashes: Canonical hash of each network's graph; None where it cannot be traced.
    """

    task: Task
    nets: Mapping[str, Net]
    inits: Mapping[str, Initialization]
    recipe: Recipe = field(default_factory=lambda: Recipe(learning_rate=1e-3, evaluate_at=PROTOCOL_STEPS))
    graph_hashes: Mapping[str, str | None] = field(default_factory=dict)

    def key(self, cell: Cell) -> str:
        """Equal for cells that give equal results."""
        net = self.nets[cell.net]
        architecture = net.architecture if isinstance(net.architecture, str) else net.architecture.__qualname__
        parts = {
            "format": FORMAT,
            "version": __version__,
            "torch": torch.__version__,
            "timm": version("timm"),
            "cell": dataclasses.asdict(cell),
            "net": [architecture, dict(net.settings), net.learning_rate],
            "init": self.inits[cell.init].description,
            "recipe": dataclasses.asdict(self.recipe),
            "data": _digest_of(self.task),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:20]

    def learning_rate(self, cell: Cell) -> float:
        """Of this cell."""
        return self.nets[cell.net].learning_rate * cell.factor

    def build(self, cell: Cell) -> tuple[nn.Module, Record]:
        """The network as the cell starts it, and what that cost and reported."""
        net, initialization = self.nets[cell.net], self.inits[cell.init]
        channels, side, _ = self.task.image_shape
        torch.manual_seed(cell.seed + (OTHER_DRAWS if initialization.is_redrawn else 0))
        model = build_network(
            net,
            num_classes=self.task.num_classes,
            in_chans=channels,
            img_size=side,
            strong=initialization.is_strong,
        )
        costs: dict[str, float | None] = {}
        with measured("init", costs):
            # "off": the processes of a launcher are at different cells
            report = initialize(
                model, initialization.init, seed=cell.seed, distributed="off", **initialization.settings
            )
        if initialization.is_recalibrated:
            self._recalibrate(model)
        facts = {
            "coverage": report.coverage_elements,
            "predictor": report.predictor,
            "revision": report.revision,
            "sha256": report.sha256,
            "notes": list(report.notes),
        }
        return model, {"cost": costs, "report": facts}

    def _recalibrate(self, model: nn.Module) -> None:
        batches = self.task.train[0].split(self.recipe.batch_size)
        recalibrate_batchnorm(model, batches, num_batches=RECALIBRATION_BATCHES)


def run_cell(experiment: Experiment, cell: Cell) -> Record:
    """Compute one cell on one thread. Whatever goes wrong in it is its result: the other cells go on.

    Returns:
        A JSON-able record: the cell, its key, `status` "done" or "failed" (with `error`), results, costs, versions.
    """
    record: Record = {
        "key": experiment.key(cell),
        **dataclasses.asdict(cell),
        "data": experiment.task.name,
        "graph_hash": experiment.graph_hashes.get(cell.net),
        "learning_rate": experiment.learning_rate(cell),
        "versions": versions(),
    }
    compute = _train if cell.kind == "training" else _measure_start
    try:
        with reproducible():
            return {**record, "status": "done", **compute(experiment, cell)}
    except Exception as error:  # an initializer is other people's code and may fail in any way
        return {**record, "status": "failed", "error": f"{type(error).__name__}: {error}"}


def _train(experiment: Experiment, cell: Cell) -> Record:
    model, start = experiment.build(cell)
    recipe = dataclasses.replace(experiment.recipe, learning_rate=experiment.learning_rate(cell))
    with measured("training", start["cost"]):
        curve = learning_curve(model, experiment.task.train, experiment.task.block(cell.block), recipe, seed=cell.seed)
    has_diverged = not all(bool(tensor.isfinite().all()) for tensor in model.parameters())
    return {
        **start,
        "curve": {str(step): value for step, value in curve.items()},
        "auc": mean_accuracy(curve),
        "has_diverged": has_diverged,
    }


def _measure_start(experiment: Experiment, cell: Cell) -> Record:
    """Everything that can be said before the first step."""
    model, start = experiment.build(cell)
    task, block = experiment.task, experiment.task.block(cell.block)
    batch = (task.train[0][: experiment.recipe.batch_size], task.train[1][: experiment.recipe.batch_size])
    flow = gradient_flow(model, batch, learning_rate=experiment.learning_rate(cell))
    plain = accuracy(model, block)
    recalibrated = copy.deepcopy(model)
    experiment._recalibrate(recalibrated)
    return {
        **start,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_seconds": _step_seconds(model, batch),
        "zero_shot": {
            "plain": plain,
            "recalibrated": accuracy(recalibrated, block),
            **feature_accuracy(recalibrated, task.train, block),
        },
        "flow": flow,
        "distribution": weight_distribution(model),
    }


def _step_seconds(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Wall time of one training step of a copy, the quicker of three."""
    seconds = []
    for _ in range(3):
        costs: dict[str, float | None] = {}
        recipe = Recipe(learning_rate=0.0, steps=1, batch_size=len(batch[0]), evaluate_at=())
        network = copy.deepcopy(model)
        with measured("step", costs):
            learning_curve(network, batch, batch, recipe, seed=0)
        seconds.append(costs["step_seconds"] or 0.0)
    return min(seconds)


@functools.lru_cache(maxsize=4)
def _digest_of(task: Task) -> str:
    return task.digest


@functools.cache
def versions() -> dict[str, str]:
    """What results depend on."""
    return {
        "hf_paraminit": __version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@contextmanager
def reproducible() -> Iterator[None]:
    """One thread, deterministic algorithms where torch has them; the process is as before afterwards."""
    threads = torch.get_num_threads()
    former = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(former[0], warn_only=former[1])
        torch.set_num_threads(threads)
