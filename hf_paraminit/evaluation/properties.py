"""Predicting properties of networks from a hypernetwork's embeddings of their graphs, and searching by them.

GHN-2, arXiv 2110.13100, section 5.4: support vector regression on graph embeddings, Kendall's tau over unseen networks.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_paraminit.errors import MissingDependencyError, TrainingConfigError
from hf_paraminit.evaluation.coverage import find_hypernetwork
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.network_cells import NetworkCell, Predictor, cell_key

# Legend: N networks, d numbers of an embedding.

Vectors = NDArray[np.float64]

PROPERTIES = ("val_acc", "val_acc_noise", "time", "converge_time")
SMALLER_IS_BETTER = ("time", "converge_time")
NOT_ROUNDED = ("converge_time",)  # the others are compared as whole numbers
GRID: Mapping[str, Sequence[Any]] = {
    "C": (1, 10, 50, 100, 200, 500, 1000),
    "gamma": ("auto", 0.05, 0.1, 0.2, 0.5),
    "epsilon": (0.05, 0.1, 0.2),
}
FOLDS = 5
PERMUTATIONS: tuple[int | None, ...] = (None, 0, 1, 2, 3)  # seeds of the order in which the grid search sees networks
MIN_NETWORKS = 2 * FOLDS


@dataclass(frozen=True, kw_only=True)
class EmbeddingExperiment:
    """Embedding of each network's graph by each predictor.

    Attributes:
        predictors: By label.
    """

    predictors: Mapping[str, Predictor]

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results; the seed of the weights decides nothing."""
        predictor = self.predictors[cell.init]
        return cell_key("embedding", cell, {"init": [predictor.init, predictor.digest]})

    def compute(self, cell: NetworkCell) -> Record:
        """Trace, and run the hypernetwork up to its decoder."""
        with torch.device("meta"):
            network = cell.network.build()
        vector = graph_embedding(network, self.predictors[cell.init].init)
        return {"embedding": [round(value, 6) for value in vector.tolist()]}


@torch.no_grad()
def graph_embedding(network: torch.nn.Module, init: Any = "ghn3") -> torch.Tensor:
    """Mean of a hypernetwork's node states over the nodes of a network's graph, after the last norm.

    Args:
        network: Any model that can be traced, on meta too.
        init: Names the hypernetwork.

    Returns:
        (d,) float32 on the CPU.

    Raises:
        InitializerConfigError: The initializer is no graph hypernetwork.
        TracingError: The network's graph cannot be read.
    """
    ghn = find_hypernetwork(init)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return ghn.embed_nodes([ghn.trace(network)], [shapes]).float().mean(0).cpu()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well one property is predicted.

    Attributes:
        name: Of the property.
        taus: Kendall's tau on the test networks, one per order of the grid search.
        settings: Of the regressor that the grid search found in the order as given.
        train_count: Networks that the regressor learned from.
        test_count: Networks that it was tested on.
        predicted: Of the test networks, for the order as given.
        true: Of the test networks.
    """

    name: str
    taus: tuple[float, ...]
    settings: Mapping[str, Any]
    train_count: int
    test_count: int
    predicted: tuple[float, ...] = field(repr=False)
    true: tuple[float, ...] = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean tau."""
        return statistics.fmean(self.taus)

    @property
    def deviation(self) -> float:
        """Standard deviation of tau over the orders."""
        return statistics.stdev(self.taus) if len(self.taus) > 1 else 0.0

    def to_dict(self) -> Record:
        """JSON values."""
        return {**asdict(self), "mean": self.mean, "deviation": self.deviation}


def fit_property(
    name: str,
    train: tuple[Vectors, Vectors],
    test: tuple[Vectors, Vectors],
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    permutations: Sequence[int | None] = PERMUTATIONS,
) -> Fit:
    """Find a support vector regressor by cross-validation, and test it.

    Args:
        name: Of the property.
        train: Embeddings (N, d) and values (N,) to learn from; the folds of the grid search are cut from them.
        test: Likewise, to test on.
        grid: Settings of `sklearn.svm.SVR` to try; None for the published ones.
        permutations: Seeds of the orders in which the grid search sees the networks, None for the order as given. They
            change the folds, so the settings; the regressor itself is fitted to the order as given.

    Raises:
        TrainingConfigError: Too few networks, or values that are not finite.
        MissingDependencyError: scikit-learn is not installed.
    """
    _check(name, train, test)
    svm, selection = _sklearn()
    embeddings, values = train
    taus, first = [], None
    for seed in permutations:
        order = np.arange(len(values)) if seed is None else np.random.RandomState(seed).permutation(len(values))
        search = selection.GridSearchCV(
            svm.SVR(kernel="rbf"), {key: list(tried) for key, tried in (grid or GRID).items()}, cv=FOLDS
        )
        search.fit(embeddings[order], values[order])
        predicted = svm.SVR(kernel="rbf", **search.best_params_).fit(embeddings, values).predict(test[0])
        taus.append(_kendall(predicted if name in NOT_ROUNDED else predicted.round(), test[1]))
        first = first or (dict(search.best_params_), tuple(predicted.tolist()))
    assert first is not None
    return Fit(
        name=name,
        taus=tuple(taus),
        settings=first[0],
        train_count=len(values),
        test_count=len(test[1]),
        predicted=first[1],
        true=tuple(test[1].tolist()),
    )


def search_networks(
    name: str, known: tuple[Vectors, Vectors], candidates: Vectors, settings: Mapping[str, Any], *, count: int = 10
) -> list[tuple[int, float]]:
    """Rank networks that were never trained by a predicted property, the best first.

    Args:
        name: Of the property: times are best when small, accuracies when large.
        known: Embeddings (N, d) and values (N,) of all networks whose property is known.
        candidates: Embeddings (M, d).
        settings: Of the regressor, as the grid search found them.
        count: How many to return.

    Returns:
        Index of the candidate and predicted value.
    """
    svm, _ = _sklearn()
    predicted = svm.SVR(kernel="rbf", **settings).fit(*known).predict(candidates)
    order = np.argsort(predicted if name in SMALLER_IS_BETTER else -predicted, kind="stable")
    return [(int(index), float(predicted[index])) for index in order[:count]]


def read_properties(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Read the known properties of networks.

    Args:
        path: A CSV file with the columns `group`, `network` and at least one of `val_acc`, `val_acc_noise` (percent),
            `time`, `converge_time`; or a JSON file `{"group": {"property": [value of network 0, ...]}}`.

    Returns:
        Values by group and name of the network; what is not a finite number is left out.

    Raises:
        TrainingConfigError: The file cannot be read as such.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(_json_rows(json.loads(text))) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        found = {(row["group"], str(row["network"])): _numbers(row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingConfigError(
            f"Cannot read the properties of networks from {path}: {type(error).__name__}: {error}. Expected a CSV file "
            f"with the columns group, network and some of {', '.join(PROPERTIES)}, as `--experiment measure` writes."
        ) from error
    if not any(found.values()):
        raise TrainingConfigError(
            f"{path} has no values of {', '.join(PROPERTIES)} beside the columns group and network."
        )
    return found


def _json_rows(content: Mapping[str, Mapping[str, Sequence[Any]]]) -> Iterator[dict[str, Any]]:
    for group, columns in content.items():
        known = {name: values for name, values in columns.items() if name in PROPERTIES}
        for index in range(max(map(len, known.values()), default=0)):
            values = {name: column[index] for name, column in known.items() if index < len(column)}
            yield {"group": group, "network": str(index), **values}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    values = {name: row[name] for name in PROPERTIES if row.get(name) not in (None, "")}
    return {name: float(value) for name, value in values.items() if math.isfinite(float(value))}


def _check(name: str, train: tuple[Vectors, Vectors], test: tuple[Vectors, Vectors]) -> None:
    faults = []
    if len(train[1]) < MIN_NETWORKS:
        faults.append(f"{len(train[1])} networks to learn from, expected at least {MIN_NETWORKS}")
    if len(test[1]) < 2:
        faults.append(f"{len(test[1])} networks to test on, expected at least 2")
    if not all(np.isfinite(part).all() for block in (train, test) for part in block):
        faults.append("embeddings or values that are not finite")
    if faults:
        raise TrainingConfigError(f"Cannot fit {name!r} to graph embeddings: {'; '.join(faults)}.")


def _kendall(predicted: Vectors, true: Vectors) -> float:
    """Kendall's tau-b; 0 where one side is constant."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(predicted, true).statistic)
    return 0.0 if math.isnan(tau) else tau


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn import model_selection, svm
    except ImportError as error:
        raise MissingDependencyError(
            'Property prediction needs scikit-learn, which is not installed: pip install "hf_paraminit[data]".'
        ) from error
    return svm, model_selection
