import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_evaluation as tiny
import torch

from hf_paraminit import GHN, GHNConfig
from hf_paraminit.errors import InitializerConfigError, PredictorNotFoundError, TrainingConfigError
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, Predictor, compute_cells, find_predictor
from hf_paraminit.evaluation.zero_shot import (
    ZeroShot,
    ZeroShotExperiment,
    parameter_norm,
    require_same_classes,
    zero_shot_accuracy,
)


@pytest.fixture(scope="module")
def predictor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GHNConfig(hidden_dim=16, num_heads=2, num_layers=1, max_shape=(16, 16, 3, 3), num_classes=tiny.CLASSES)
    folder = tmp_path_factory.mktemp("ghn") / "four-classes"
    GHN.new(config, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def experiment(predictor_folder: Path) -> ZeroShotExperiment:
    predictor = find_predictor("tiny", f"local-dir:{predictor_folder}")
    task = tiny.tiny_task()
    return ZeroShotExperiment(
        images=Images(data=task),
        predictors={"tiny": predictor, "default": Predictor(label="default", init=None)},
        data_digest=task.digest,
    )


def cells(init: str = "tiny") -> list[NetworkCell]:
    return [NetworkCell(network=network, init=init) for network in tiny.tiny_networks()]


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_every_network_has_accuracy_norm_coverage_and_cost(experiment: ZeroShotExperiment) -> None:
    records = compute_cells(experiment, cells(), output=None, processes=1, title="test")
    assert [record["status"] for record in records] == ["done"] * 3, records[0].get("error")
    for record, width in zip(records, (8, 12, 16), strict=True):
        assert record["parameters"] == sum(p.numel() for p in tiny.TinyNet(width).parameters())
        assert 0 <= record["accuracy"]["top1"] <= record["accuracy"]["top5"] == 100
        assert record["coverage"] == 1.0
        assert record["parameter_norm"] > 0
        assert set(record["seconds"]) >= {"total", "trace", "decode"}
        assert record["predictor"]["parameters"] > 1000


def test_the_own_start_is_what_predictions_are_compared_with(experiment: ZeroShotExperiment) -> None:
    (record,) = compute_cells(experiment, cells("default")[:1], output=None, processes=1, title="test")
    assert record["status"] == "done"
    assert record["coverage"] == 0.0
    torch.manual_seed(0)
    assert record["parameter_norm"] == pytest.approx(parameter_norm(tiny.TinyNet()))


def test_finished_cells_are_not_computed_again_and_failed_ones_are(
    experiment: ZeroShotExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = NetworkCell(network=tiny.BROKEN, init="tiny")
    first = compute_cells(experiment, [*cells(), broken], output=tmp_path, processes=1, title="test")
    assert first[-1]["status"] == "failed"
    assert "no such layer" in first[-1]["error"]
    calls = []
    compute = ZeroShotExperiment.compute
    monkeypatch.setattr(ZeroShotExperiment, "compute", lambda self, cell: calls.append(cell) or compute(self, cell))
    again = compute_cells(experiment, [*cells(), broken], output=tmp_path, processes=1, title="test")
    assert again[:3] == first[:3]
    assert [cell.network.name for cell in calls] == ["broken"]


@pytest.mark.slow
def test_processes_give_the_same_results(experiment: ZeroShotExperiment) -> None:
    alone = compute_cells(experiment, cells(), output=None, processes=1, title="test")
    shared = compute_cells(experiment, cells(), output=None, processes=2, title="test")
    assert without_times(shared) == without_times(alone)


def test_a_cell_is_another_one_under_other_settings(experiment: ZeroShotExperiment) -> None:
    (cell, other, _) = cells()
    assert experiment.key(cell) == experiment.key(copy.deepcopy(cell))
    keys = {
        experiment.key(cell),
        experiment.key(other),
        ZeroShotExperiment(
            images=experiment.images, predictors=experiment.predictors, settings=ZeroShot(statistics="batch")
        ).key(cell),
        experiment.key(NetworkCell(network=cell.network, init="tiny", seed=1)),
        experiment.key(NetworkCell(network=cell.network, init="default")),
    }
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("settings", "measures"),
    [
        (ZeroShot(), {"top1", "top5", "finite", "batch_size"}),
        (ZeroShot(statistics="batch", batch_size=10), {"top1", "top5", "finite", "batch_size"}),
        (ZeroShot(readout="features"), {"nearest_mean", "linear"}),
    ],
)
def test_only_statistics_of_batch_norm_may_change(settings: ZeroShot, measures: set[str]) -> None:
    network = tiny.TinyNet()
    before = copy.deepcopy(dict(network.named_parameters()))
    found = zero_shot_accuracy(network, tiny.tiny_task(), "test", settings)
    assert set(found) == measures
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    is_recalibrated = network.norm.running_mean.ne(0).any()
    assert bool(is_recalibrated) == (settings.statistics == "recalibrated")


def test_without_batch_norm_the_batch_does_not_matter() -> None:
    network = tiny.TinyNet()
    network.norm = torch.nn.Identity()
    settings = [ZeroShot(statistics="batch", batch_size=size) for size in (3, 64)]
    small, large = (zero_shot_accuracy(network, tiny.tiny_task(), "test", one) for one in settings)
    assert small["top1"] == large["top1"]


def test_noise_on_pixels_changes_scores_but_not_the_network() -> None:
    network, task = tiny.TinyNet(), tiny.tiny_task()
    plain, noisy = (task.noisy("test", std)[0] for std in (0.0, 0.5))
    found = zero_shot_accuracy(network, task, "test", ZeroShot(statistics="batch", pixel_noise=0.5))
    replaced = dataclasses.replace(task, test=(noisy, task.test[1]))
    assert found == zero_shot_accuracy(network, replaced, "test", ZeroShot(statistics="batch"))
    assert not torch.equal(plain, noisy)


def test_another_number_of_classes_is_refused_before_any_work() -> None:
    predictor = find_predictor("ghn3")
    with pytest.raises(TrainingConfigError, match=r"1000 classes, quarters has 4"):
        require_same_classes(predictor, tiny.tiny_task(), ZeroShot())
    require_same_classes(predictor, tiny.tiny_task(), ZeroShot(readout="features"))
    require_same_classes(predictor, tiny.tiny_task(), ZeroShot(readout="cut-head"))


def test_a_predictor_of_another_kind_is_refused() -> None:
    with pytest.raises(InitializerConfigError, match="as a graph hypernetwork: it reads no graphs"):
        find_predictor("he")
    with pytest.raises(PredictorNotFoundError):
        find_predictor("local-dir:nowhere-at-all")


def test_an_empty_selection_is_refused(experiment: ZeroShotExperiment) -> None:
    with pytest.raises(TrainingConfigError, match="selection of networks is empty"):
        compute_cells(experiment, [], output=None, processes=1, title="test")


@pytest.mark.parametrize(
    "settings",
    [
        {"readout": "all"},
        {"statistics": "none"},
        {"batch_size": 0},
        {"pixel_noise": -0.1},
        {"readout": "features", "statistics": "batch"},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainingConfigError):
        ZeroShot(**settings)
