import dataclasses
import json
from typing import Any

import pytest
import torch
from tiny_training import NET, TASK, TinyNet
from torch import Tensor, nn

from hf_paraminit.evaluation.controls import do_nothing, ten_times
from hf_paraminit.evaluation.experiment import Cell, Experiment, Initialization, run_cell
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.nets import NETS, Net

CELL = Cell(kind="training", net="tiny", init="default", seed=3)


def fails(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    raise ZeroDivisionError("no such luck")


def gives_nan(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    return {names[0]: torch.full_like(dict(model.named_parameters())[names[0]], float("nan"))}


INITS = {
    label: Initialization(label=label, init=init)
    for label, init in [
        ("default", None),
        ("he", "he"),
        ("nothing", do_nothing),
        ("ten-times", ten_times),
        ("fails", fails),
        ("nan", gives_nan),
    ]
}
EXPERIMENT = Experiment(
    task=TASK,
    nets={"tiny": NET, "R": NETS["R"]},
    inits=INITS,
    recipe=Recipe(learning_rate=1.0, steps=8, batch_size=16, evaluate_at=(0, 4, 8)),
)


def result(**changes: Any) -> dict[str, Any]:
    return run_cell(EXPERIMENT, dataclasses.replace(CELL, **changes))


def test_a_cell_gives_the_same_curve_on_every_run() -> None:
    first, second = result(), result()
    assert first["status"] == "done"
    assert first["curve"] == pytest.approx(second["curve"], abs=1e-6)
    assert json.loads(json.dumps(first)) == first
    assert {"torch", "timm", "hf_paraminit"} <= first["versions"].keys()
    assert first["cost"]["training_cpu_seconds"] > 0


def test_a_cell_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    result()
    result(kind="start")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_doing_nothing_changes_nothing() -> None:
    assert result(init="nothing")["curve"] == result()["curve"]


def test_runs_of_a_seed_see_the_same_weights_and_images_of_others_do_not() -> None:
    assert result(seed=4)["curve"] != result()["curve"]
    assert result(init="ten-times")["curve"] != result()["curve"]


def test_the_learning_rate_is_the_nets_times_the_factor() -> None:
    assert result(factor=3.0)["learning_rate"] == pytest.approx(3e-2)


@pytest.mark.parametrize(
    ("init", "error"), [("fails", "ZeroDivisionError: no such luck"), ("nan", "PredictionError: ")]
)
@pytest.mark.parametrize("kind", ["training", "start"])
def test_a_failure_is_the_cells_result(init: str, error: str, kind: str) -> None:
    record = result(init=init, kind=kind)
    assert record["status"] == "failed"
    assert record["error"].startswith(error)
    assert "curve" not in record


def test_the_key_changes_with_whatever_changes_the_result() -> None:
    key = EXPERIMENT.key(CELL)
    others = [
        EXPERIMENT.key(dataclasses.replace(CELL, **change))
        for change in ({"seed": 4}, {"factor": 3.0}, {"block": "validation"}, {"kind": "start"}, {"init": "he"})
    ]
    narrower = dataclasses.replace(NET, settings={"width": 4})
    settings = {"default": Initialization(label="default", settings={"gain": 2})}
    others += [
        dataclasses.replace(EXPERIMENT, **change).key(CELL)
        for change in (
            {"recipe": dataclasses.replace(EXPERIMENT.recipe, steps=9)},
            {"nets": {"tiny": narrower}},
            {"inits": settings},
            {"task": dataclasses.replace(TASK, test=TASK.validation)},
        )
    ]
    assert len({key, *others}) == len(others) + 1
    assert dataclasses.replace(EXPERIMENT).key(CELL) == key


def test_the_start_is_measured() -> None:
    record = result(kind="start")
    assert record["status"] == "done", record
    assert record["parameters"] == sum(p.numel() for p in TinyNet(3, 3).parameters())
    assert set(record["zero_shot"]) == {"plain", "recalibrated", "nearest_mean", "linear"}
    assert record["step_seconds"] > 0
    assert [layer["name"] for layer in record["flow"]["layers"]] == ["0", "3", "7"]
    assert json.loads(json.dumps(record)) == record


def test_the_strong_default_is_the_hosts_own_variant() -> None:
    experiment = dataclasses.replace(
        EXPERIMENT, inits={"strong-default": Initialization(label="strong-default", is_strong=True)}
    )
    model, _ = experiment.build(Cell(kind="training", net="R", init="strong-default", seed=0))
    plain, _ = EXPERIMENT.build(Cell(kind="training", net="R", init="default", seed=0))
    assert model.layer1[0].bn2.weight.abs().min() == 1
    assert plain.layer1[0].bn2.weight.abs().max() == 0
    assert torch.equal(model.conv1.weight, plain.conv1.weight)


def test_the_strong_vit_has_a_sincos_position_and_is_else_the_default() -> None:
    experiment = Experiment(
        task=TASK,
        nets={"V": Net(**{**vars(NETS["V"]), "settings": {**NETS["V"].settings, "img_size": 8}})},
        inits={"default": INITS["default"], "strong": Initialization(label="strong", is_strong=True)},
    )
    strong, plain = (
        dict(experiment.build(Cell(kind="training", net="V", init=init, seed=0))[0].named_parameters())
        for init in ("strong", "default")
    )
    assert [name for name in plain if not torch.equal(strong[name], plain[name])] == ["pos_embed"]
    assert strong["pos_embed"][0, 0].abs().max() == 0  # the class token
    # 32 pairs of a sine and a cosine
    assert torch.allclose(strong["pos_embed"][0, 1:].square().sum(1), torch.tensor(32.0))


def test_other_draws_keep_the_order_of_the_images() -> None:
    experiment = dataclasses.replace(
        EXPERIMENT, inits={**INITS, "redrawn": Initialization(label="redrawn", is_redrawn=True)}
    )
    default, _ = experiment.build(CELL)
    redrawn, _ = experiment.build(dataclasses.replace(CELL, init="redrawn"))
    assert not torch.equal(default[0].weight, redrawn[0].weight)
