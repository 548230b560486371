import json
from pathlib import Path

import numpy as np
import pytest
import tiny_evaluation as tiny
import torch

from hf_paraminit.errors import InitializerConfigError, TrainingConfigError
from hf_paraminit.evaluation.coverage import find_hypernetwork
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.measured_properties import MeasuringExperiment
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, compute_cells, find_predictor
from hf_paraminit.evaluation.properties import (
    FOLDS,
    GRID,
    PROPERTIES,
    EmbeddingExperiment,
    fit_property,
    graph_embedding,
    read_properties,
    search_networks,
)

SMALL_GRID = {"C": (10, 100), "gamma": ("auto",), "epsilon": (0.1,)}


def embedded(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of which the first number decides the property."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(count, 4))
    return embeddings, 50 + 10 * embeddings[:, 0] + 0.1 * rng.normal(size=count)


def test_an_embedding_is_the_mean_of_node_states() -> None:
    network = tiny.TinyNet()
    ghn = find_hypernetwork("ghn3")
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    graph = ghn.trace(network)
    with torch.no_grad():
        states = ghn.embed_nodes([graph], [shapes])
    assert states.shape == (len(graph), ghn.config.hidden_dim)
    assert torch.allclose(graph_embedding(network), states.mean(0))
    assert torch.allclose(graph_embedding(network.to("meta")), states.mean(0))


def test_embeddings_are_cells_and_failures_are_records() -> None:
    experiment = EmbeddingExperiment(predictors={"ghn3": find_predictor("ghn3")})
    cells = [NetworkCell(network=network, init="ghn3") for network in [*tiny.tiny_networks(2), tiny.BROKEN]]
    first, second, broken = compute_cells(experiment, cells, output=None, processes=1, title="test")
    assert len(first["embedding"]) == find_hypernetwork("ghn3").config.hidden_dim
    assert first["embedding"] != second["embedding"]
    assert first["embedding"] == pytest.approx(graph_embedding(tiny.TinyNet()).tolist(), abs=1e-6)
    assert broken["status"] == "failed"
    with pytest.raises(InitializerConfigError):
        graph_embedding(tiny.TinyNet(), "he")


def test_a_property_that_depends_on_the_embedding_is_predicted() -> None:
    fit = fit_property("val_acc", embedded(40, seed=0), embedded(30, seed=1), grid=SMALL_GRID)
    assert len(fit.taus) == 5
    assert fit.mean > 0.7
    assert (fit.train_count, fit.test_count) == (40, 30)
    assert set(fit.settings) == set(SMALL_GRID)
    assert json.dumps(fit.to_dict())


def test_one_that_does_not_is_not() -> None:
    embeddings, _ = embedded(60, seed=0)
    noise = np.random.default_rng(5).normal(size=60)
    fit = fit_property(
        "converge_time", (embeddings, noise), embedded(40, seed=1), grid=SMALL_GRID, permutations=(None,)
    )
    assert abs(fit.mean) < 0.3
    assert fit.deviation == 0


def test_the_published_grid_and_folds() -> None:
    assert {name: len(values) for name, values in GRID.items()} == {"C": 7, "gamma": 5, "epsilon": 3}
    assert FOLDS == 5


@pytest.mark.parametrize(("name", "is_largest"), [("val_acc", True), ("time", False), ("converge_time", False)])
def test_the_best_is_the_most_accurate_or_the_quickest(name: str, is_largest: bool) -> None:
    known, (candidates, values) = embedded(80, seed=0), embedded(30, seed=2)
    settings = {"C": 100, "gamma": "auto", "epsilon": 0.1}
    found = search_networks(name, known, candidates, settings, count=5)
    assert len(found) == 5
    predicted = [value for _, value in found]
    assert predicted == sorted(predicted, reverse=is_largest)
    ranks = np.argsort(np.argsort(-values if is_largest else values))
    assert ranks[found[0][0]] < 6


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (embedded(5, seed=0), embedded(5, seed=1)),
        (embedded(20, seed=0), embedded(1, seed=1)),
        ((np.full((20, 4), np.nan), np.zeros(20)), embedded(5, seed=1)),
    ],
)
def test_too_little_to_learn_from_is_refused(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(TrainingConfigError, match="Cannot fit 'val_acc'"):
        fit_property("val_acc", train, test)


def test_properties_are_read_from_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("group,network,val_acc,time,seed\nval,0,88.5,,3\ntest,1,nan,2.5,3\n")
    assert read_properties(tmp_path / "p.csv") == {("val", "0"): {"val_acc": 88.5}, ("test", "1"): {"time": 2.5}}
    (tmp_path / "p.json").write_text(json.dumps({"val": {"val_acc": [88.5, 90], "time": [2.5], "other": ["x"]}}))
    assert read_properties(tmp_path / "p.json") == {
        ("val", "0"): {"val_acc": 88.5, "time": 2.5},
        ("val", "1"): {"val_acc": 90.0},
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", ""),
        ("p.csv", "network,val_acc\n0,1\n"),
        ("p.csv", "group,network,val_acc\nval,0,high\n"),
        ("p.csv", "group,network,loss\nval,0,3\n"),
        ("p.json", "[]"),
        ("p.json", '{"val": 3}'),
        ("p.json", "{"),
    ],
)
def test_other_files_are_refused_by_name(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainingConfigError, match=name.replace(".", r"\.")):
        read_properties(tmp_path / name)


def test_properties_are_measured_by_a_short_training() -> None:
    task = tiny.tiny_task()
    recipe = Recipe(learning_rate=1e-2, steps=20, batch_size=16, evaluate_at=(10, 20))
    experiment = MeasuringExperiment(images=Images(data=task), recipe=recipe, data_digest=task.digest)
    (record,) = compute_cells(
        experiment, [NetworkCell(network=tiny.tiny_networks(1)[0])], output=None, processes=1, title="test"
    )
    assert record["status"] == "done", record
    assert set(PROPERTIES) <= set(record)
    assert 0 <= record["val_acc_noise"] <= 100
    assert record["val_acc"] == record["curve"]["20"]
    assert record["time"] > 0
    assert record["converge_time"] > 0
