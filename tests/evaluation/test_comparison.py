import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import NET, TASK, TinyNet
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import OutputError, ParamInitError, TrainingConfigError, UnknownInitializerError
from hf_paraminit.evaluation import runner
from hf_paraminit.evaluation.comparison import TUNING_SEEDS, Comparison, _named_inits, best_factors, compare_inits
from hf_paraminit.evaluation.fingerprint import fingerprint
from hf_paraminit.evaluation.nets import Net

SHORT = {"data": TASK, "steps": 12, "batch_size": 16, "processes": 1}
OTHER = Net(name="wider", architecture=TinyNet, settings={"width": 12}, learning_rate=1e-2)


def fails_on_the_wider(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    if dict(model.named_parameters())["0.weight"].shape[0] == 12:
        raise ValueError("too wide for me")
    return {}


def dies(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    os._exit(9)


def compare(*arguments: Any, **more: Any) -> Comparison:
    return compare_inits(*arguments, **{**SHORT, **more})


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells that were really computed."""
    cells: list[Any] = []
    original = runner.run_cell

    def run_cell(experiment: Any, cell: Any) -> Any:
        cells.append(cell)
        return original(experiment, cell)

    monkeypatch.setattr(runner, "run_cell", run_cell)
    return cells


def test_the_known_controls_are_judged_as_known(tmp_path: Path) -> None:
    """Doing nothing has no effect at all, a start ten times too large is found to harm."""
    found = compare([NET], ["nothing", "ten-times"], seeds=6, tune=False, output=tmp_path)
    nothing, large = found.summary.overall["nothing"], found.summary.overall["ten-times"]
    assert (nothing.estimate.low, nothing.estimate.high, nothing.verdict) == (0, 0, "undecided")
    assert large.verdict == "harms"
    assert found.verdict == (
        "On this model: no initialisation was shown to be better than the default; ten-times harms; nothing is "
        "undecided."
    )


def test_every_cell_is_computed_once_and_more_seeds_add_only_what_is_missing(
    tmp_path: Path, computed: list[Any]
) -> None:
    first = compare([NET], ["he"], seeds=1, output=tmp_path)
    # tuning: 2 initialisations x 3 rates x 2 seeds; then each seed at the base rate and at the tuned one; one start
    factors = [row.factor for row in first.summary.rows]
    assert len(computed) == 12 + sum(1 + (factor != 1) for factor in factors) + 2
    assert len({json.dumps(dataclasses.asdict(cell)) for cell in computed}) == len(computed)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == len(computed)

    computed.clear()
    again = compare([NET], ["he"], seeds=1, output=tmp_path)
    assert computed == []
    assert [row.curve for row in again.summary.rows] == [row.curve for row in first.summary.rows]

    compare([NET], ["he"], seeds=2, output=tmp_path)
    assert {cell.seed for cell in computed} == {1}


def test_an_interrupted_run_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = runner.run_cell, []

    def interrupted(experiment: Any, cell: Any) -> Any:
        calls.append(cell)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(experiment, cell)

    monkeypatch.setattr(runner, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare([NET], ["he"], seeds=3, tune=False, output=tmp_path)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3
    before = len(calls)
    compare([NET], ["he"], seeds=3, tune=False, output=tmp_path)
    assert len(calls) - before == 6 + 4 - 3


def test_an_initializer_that_fails_on_one_model_stops_nothing(tmp_path: Path) -> None:
    found = compare([NET, OTHER], {"picky": fails_on_the_wider}, seeds=2, tune=False, output=tmp_path)
    assert [(row.net, row.init) for row in found.summary.rows] == [
        ("tiny", "default"),
        ("tiny", "picky"),
        ("wider", "default"),
    ]
    ((net, init, count, error),) = found.summary.failures
    assert (net, init, count, error) == ("wider", "picky", 4, "ValueError: too wide for me")
    assert "too wide for me" in (tmp_path / "index.html").read_text()
    assert found.summary.overall["picky"].architectures == 1


def test_a_model_without_a_strong_variant_has_no_row_for_it() -> None:
    found = compare([NET], ["strong-default"], seeds=1, tune=False)
    assert [row.init for row in found.summary.rows] == ["default"]
    assert found.summary.overall == {}


def test_worker_processes_give_the_same_numbers(tmp_path: Path) -> None:
    alone = compare([NET], ["he"], seeds=2, tune=False)
    together = compare([NET], ["he"], seeds=2, tune=False, processes=2, output=tmp_path)
    for first, second in zip(alone.summary.rows, together.summary.rows, strict=True):
        assert first.curve == pytest.approx(second.curve, abs=1e-6)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ParamInitError, match="run the same again with fewer processes"):
        compare([NET], {"dies": dies}, seeds=2, tune=False, processes=2, output=tmp_path)


def test_the_files_of_a_comparison(tmp_path: Path) -> None:
    found = compare([NET], ["he"], seeds=2, tune=False, output=tmp_path)
    names = {"runs.jsonl", "summary.json", "summary.csv", "cells.csv", "index.html", ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == names
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["verdict"] == found.verdict
    assert stored["settings"]["seeds"] == [0, 1]
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [(row["net"], row["init"]) for row in rows] == [("tiny", "default"), ("tiny", "he")]
    assert float(rows[1]["auc"]) == pytest.approx(found.summary.rows[1].auc, abs=1e-3)
    assert len(list(csv.DictReader((tmp_path / "cells.csv").open()))) == len(found.records)


def test_the_tuned_rate_is_chosen_on_validation_images_of_seeds_that_are_not_reported() -> None:
    found = compare([NET], ["he"], seeds=1)
    tuning = [record for record in found.records if record["seed"] in TUNING_SEEDS]
    assert {record["block"] for record in tuning} == {"validation"}
    reported = [record for record in found.records if record["seed"] == 0]
    assert {record["block"] for record in reported} == {"test"}
    assert {seed for row in found.summary.rows for seed in row.seeds} == {0}


def test_the_best_factor_wins_and_the_base_rate_wins_ties() -> None:
    def record(factor: float, auc: float, status: str = "done") -> dict[str, Any]:
        return {"net": "n", "init": "i", "factor": factor, "auc": auc, "status": status}

    assert best_factors([record(1.0, 50), record(3.0, 52), record(3.0, 50)]) == {("n", "i"): 3.0}
    assert best_factors([record(3.0, 50), record(1.0, 50)]) == {("n", "i"): 1.0}
    assert best_factors([record(3.0, 50, "failed")]) == {}


def test_a_model_may_be_a_function(tmp_path: Path) -> None:
    found = compare({"mine": TinyNet}, {"zeros": lambda model, names: {}}, seeds=1, tune=False)
    assert found.settings["models"]["mine"]["title"] == "mine (TinyNet, small)"


@pytest.mark.parametrize(
    ("models", "inits", "more", "error", "message"),
    [
        ([NET], ["gnh3"], {}, UnknownInitializerError, "ghn3"),
        (["resnet_18"], ["he"], {}, ParamInitError, "has no model 'resnet_18'"),
        ([], ["he"], {}, TrainingConfigError, "at least one model"),
        ([NET], ["he"], {"seeds": 0}, TrainingConfigError, "different seeds"),
        ([NET], ["he"], {"seeds": (1, 1)}, TrainingConfigError, "different seeds"),
        ([NET], ["he"], {"seeds": (100, 1)}, TrainingConfigError, "cannot be reported"),
        ([NET], ["he"], {"steps": 0}, TrainingConfigError, "at least 1 step"),
        ([NET], ["he"], {"batch_size": 121}, TrainingConfigError, "fewer than a batch"),
        ([NET], ["he"], {"init_kwargs": {"orthogonal": {}}}, TrainingConfigError, "orthogonal, which is not compared"),
        ([NET], ["permuted(gnh3)"], {}, ParamInitError, "gnh3"),
        ({"mine": lambda num_classes: TinyNet(num_classes, 3)}, ["he"], {}, ParamInitError, "could not build mine"),
        ({"mine": lambda num_classes, in_chans: nn.Flatten()}, ["he"], {}, ParamInitError, r"shape \(2, 3\); mine"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_computed(
    models: Any, inits: Any, more: dict[str, Any], error: type[Exception], message: str, tmp_path: Path,
    computed: list[Any],
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        compare(models, inits, output=tmp_path / "out", **more)
    assert computed == []
    assert not (tmp_path / "out").exists()


def test_another_predictor_under_the_same_name_is_another_start() -> None:
    found = _named_inits(["ghn3", "permuted(ghn3)", "he"], {})
    (digest,) = found["ghn3"].predictors
    assert len(digest.split()[0]) == 64
    assert found["permuted(ghn3)"].predictors == (digest,)
    assert found["he"].predictors == ()
    mixed = _named_inits({"mixed": {"*.weight": "ghn3", "*": "he"}}, {})["mixed"]
    assert mixed.predictors == (digest,)
    other = dataclasses.replace(found["ghn3"], predictors=("0" * 64,))
    assert other.description != found["ghn3"].description


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, computed: list[Any]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="Choose a folder"):
        compare([NET], ["he"], output=tmp_path / "file")
    assert computed == []


def test_networks_that_a_predictor_was_trained_on_are_named() -> None:
    model = TinyNet(3, 3)
    model.expected_input_sz = (3, 8, 8)  # type: ignore[assignment]
    found = compare([NET, OTHER], ["he"], seeds=1, tune=False, steps=2, trained_on=[fingerprint(model)])
    assert list(found.seen) == ["tiny"]
    assert "wider" not in found.seen


def test_it_is_a_public_name() -> None:
    assert hf_paraminit.compare_inits is compare_inits


@pytest.mark.slow
def test_an_initializer_without_effect_stays_within_its_interval() -> None:
    """Other draws of the default: in 20 repetitions, at most 4 intervals may exclude zero (p = 0.003 for more)."""
    outside = 0
    for repetition in range(20):
        seeds = range(1000 * (repetition + 1), 1000 * (repetition + 1) + 8)
        found = compare([NET], ["redrawn"], seeds=seeds, tune=False)
        outside += found.summary.overall["redrawn"].estimate.excludes_zero
    assert outside <= 4


@pytest.mark.slow
def test_the_reference_row_of_the_strongest_trivial_variant() -> None:
    """Net R without zero branches: +19.7 AUC on digits in the protocol's own measurement (section 4)."""
    torch.set_num_threads(1)
    found = compare_inits(["R"], ["strong-default"], seeds=range(200, 206), tune=False, block="validation")
    estimate = found.summary.overall["strong-default"].estimate
    assert estimate.low is not None
    assert estimate.low > 5
