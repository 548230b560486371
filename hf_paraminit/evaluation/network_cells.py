"""Evaluations of a predictor network by network: what their cells have in common."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hf_paraminit import __version__
from hf_paraminit.errors import InitializerConfigError, TrainingConfigError
from hf_paraminit.evaluation.coverage import find_hypernetwork
from hf_paraminit.evaluation.experiment import Record, reproducible, versions
from hf_paraminit.evaluation.runner import Runner
from hf_paraminit.evaluation.tasks import Block, Task, load_task
from hf_paraminit.io.run_store import RunStore
from hf_paraminit.training.processes import is_launched, process_index

FORMAT = 1  # of records; a change makes all cells new


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the networks that are evaluated.

    Attributes:
        group: What tables are split by: a split of DeepNets-1M, or the package that the network comes from.
        name: Within the group.
        build: Makes it as its host initialises it, from torch's random state; can be pickled if there are several
            processes.
        identity: What else decides which network that is, for instance the digest of a file.
    """

    group: str
    name: str
    build: Callable[[], nn.Module]
    identity: str = ""

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class NetworkCell:
    """What to compute.

    Attributes:
        network: On which network.
        init: Label of the initialisation; empty where none is needed.
        seed: Of the weights.
    """

    network: Network
    init: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Images:
    """The data of an evaluation, by description: each process loads them itself, once.

    Attributes:
        data: What `load_task` takes.
        size: Side in pixels.
        block: What is evaluated on.
        max_train: Most training images that are read of a folder or named data set; None for all.
        max_test: Likewise of test images.
    """

    data: str | Task
    size: int = 32
    block: Block = "test"
    max_train: int | None = 4000
    max_test: int | None = 1000

    @functools.cached_property
    def task(self) -> Task:
        """The images."""
        return _loaded(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "task"}


@functools.lru_cache(maxsize=2)
def _loaded(images: Images) -> Task:
    return load_task(images.data, size=images.size, batch_size=1, max_train=images.max_train, max_test=images.max_test)


class NetworkExperiment(Protocol):
    """One kind of evaluation."""

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results."""

    def compute(self, cell: NetworkCell) -> Record:
        """The result of a cell; JSON values."""


def cell_key(kind: str, cell: NetworkCell, facts: Mapping[str, Any]) -> str:
    """Hash of the cell, of what its experiment is, and of the versions that computed it."""
    parts = {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "kind": kind,
        "network": [cell.network.group, cell.network.name, cell.network.identity],
        "init": cell.init,
        "seed": cell.seed,
        **facts,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:20]


def run_network_cell(experiment: NetworkExperiment, cell: NetworkCell) -> Record:
    """Compute one cell on one thread; whatever goes wrong in it is its result, and the other cells go on.

    Returns:
        `key`, `group`, `network`, `init`, `seed`, `versions`, and `status` "done" with the results, or "failed" with
        `error`.
    """
    record: Record = {
        "key": experiment.key(cell),
        "group": cell.network.group,
        "network": cell.network.name,
        "init": cell.init,
        "seed": cell.seed,
        "versions": versions(),
    }
    try:
        with reproducible():
            torch.manual_seed(cell.seed)
            return {**record, "status": "done", **experiment.compute(cell)}
    except Exception as error:  # networks and initializers are other people's code and may fail in any way
        return {**record, "status": "failed", "error": f"{type(error).__name__}: {error}"}


def compute_cells(
    experiment: NetworkExperiment,
    cells: Sequence[NetworkCell],
    *,
    output: Path | None,
    processes: int | None,
    title: str,
    together: bool = False,
) -> list[Record]:
    """Compute what is not there yet, over processes; the records of all cells in order.

    Args:
        experiment: What the cells belong to.
        cells: What to compute.
        output: Folder of the records; None keeps them in memory.
        processes: Worker processes where no launcher gave any; None for one per core.
        title: What the progress bar says.
        together: Under a launcher, all its processes compute each cell, instead of sharing the cells out.

    Raises:
        TrainingConfigError: There are no cells.
    """
    if not cells:
        raise TrainingConfigError("Nothing to evaluate: the selection of networks is empty.")
    if together and is_launched():
        return _compute_together(experiment, cells, output)
    store = RunStore(output, rank=process_index())
    return Runner(experiment, store, processes=processes, run=run_network_cell).compute(cells, title)


def _compute_together(experiment: NetworkExperiment, cells: Sequence[NetworkCell], output: Path | None) -> list[Record]:
    """One cell after the other on all processes; the first of them keeps the records."""
    is_first = int(os.environ["RANK"]) == 0
    done = RunStore(output)
    keys = [experiment.key(cell) for cell in cells]
    pending = [(key, cell) for key, cell in zip(keys, cells, strict=True) if not done.is_done(key)]
    store = done if is_first else RunStore(None)
    for _, cell in pending:
        store.add(run_network_cell(experiment, cell))
    return store.of(keys)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A graph hypernetwork that is evaluated, by what `init=` takes.

    Attributes:
        label: What tables call it.
        init: Value of `init=`; None for the network's own start, which predictions are compared with.
        settings: Of the initializer.
        digest: Of its weights; another file under the same name is another predictor.
        num_classes: Rows of the classifiers that it emits.
        max_size: Largest side of a decoded block; larger weights repeat it.
        parameters: Number of its own.
    """

    label: str
    init: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    num_classes: int = 0
    max_size: int = 0
    parameters: int = 0


def find_predictor(label: str, init: Any = None, settings: Mapping[str, Any] | None = None) -> Predictor:
    """Load a predictor and say what it is.

    Args:
        label: What tables call it; also the value of `init=` if none is given.
        init: Value of `init=`.
        settings: Of the initializer.

    Raises:
        InitializerConfigError: It is a predictor of another kind.
        ParamInitError: It cannot be found or read.
    """
    value = label if init is None else init
    try:
        ghn = find_hypernetwork(value)
    except InitializerConfigError as error:
        raise InitializerConfigError(
            f"Cannot evaluate {label!r} as a graph hypernetwork: it reads no graphs. Name one, as 'ghn3', 'ghn2', "
            "'hf-hub:org/repo' or 'local-dir:PATH'."
        ) from error
    return Predictor(
        label=label,
        init=value,
        settings=dict(settings or {}),
        digest=str(ghn.provenance.get("sha256") or ""),
        num_classes=ghn.config.num_classes,
        max_size=max(ghn.config.max_shape[:2]),
        parameters=sum(parameter.numel() for parameter in ghn.parameters()),
    )
