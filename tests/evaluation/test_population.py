"""Populations of networks: what is measured of them, and that populations are treated alike."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_representation import tiny_net
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation import population as populations
from hf_paraminit.evaluation.kept_results import KeptResults
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.population import evaluate_population, validation_score
from hf_paraminit.evaluation.tasks import Task
from hf_paraminit.io.run_store import RunStore

RECIPE = Recipe(learning_rate=1e-2, steps=6, batch_size=16, evaluate_at=(3, 6))


def task(num_classes: int = 4) -> Task:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % num_classes
    images = torch.randn(96, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    block = (images, labels)
    return Task(name="shifted noise", train=block, validation=block, test=block, num_classes=num_classes)


def states(count: int) -> list[dict[str, torch.Tensor]]:
    return [tiny_net().state_dict() for _ in range(count)]


def test_copies_of_one_network_agree_and_their_ensemble_is_the_network() -> None:
    population = evaluate_population("copies", tiny_net, states(1) * 3, task(), RECIPE)
    assert population.disagreement[0] == 0
    assert population.ensemble[0] == pytest.approx(population.mean(0))
    assert population.deviation(0) == 0
    assert population.deviation(6) > 0  # the order of the images differs
    assert sorted(population.curves[0]) == [0, 3, 6]


def test_different_networks_disagree_and_training_helps() -> None:
    population = evaluate_population("draws", tiny_net, states(4), task(), RECIPE)
    assert population.disagreement[0] > 0
    assert population.mean(6) > population.mean(0)
    assert population.to_dict()["accuracy"]["6"] == [population.mean(6), population.deviation(6)]


def test_a_population_is_a_function_of_its_seed_and_keeps_the_global_stream() -> None:
    before = torch.get_rng_state()
    first, second = (evaluate_population("own", tiny_net, [None, None], task(), RECIPE, seed=1) for _ in range(2))
    assert first == second
    assert first.curves[0] != first.curves[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_candidate_is_scored_as_its_population_is_and_nothing_of_it_stays() -> None:
    data, candidates = task(), states(3)
    score = validation_score(tiny_net, data, batch_size=RECIPE.batch_size)
    scores = [score(state) for state in candidates]
    population = evaluate_population("candidates", tiny_net, candidates, data, RECIPE)  # its test block is the same
    assert scores == pytest.approx([curve[0] for curve in population.curves])
    assert [score(state) for state in reversed(candidates)] == scores[::-1]
    partial = {name: tensor for name, tensor in candidates[0].items() if name.startswith("0.")}
    assert score(partial) == score(partial)
    with pytest.raises(TrainingConfigError, match="none of 1 tensors fits"):
        score({"body.weight": torch.zeros(1)})


def test_another_head_keeps_its_own_start_and_another_network_is_refused() -> None:
    def seven() -> nn.Module:
        return tiny_net(7)

    population = evaluate_population("transfer", seven, states(1), task(7), RECIPE)
    assert len(population.curves) == 1
    with pytest.raises(TrainingConfigError, match="none of 1 tensors fits"):
        evaluate_population("wrong", tiny_net, [{"body.weight": torch.zeros(1)}], task(), RECIPE)
    with pytest.raises(TrainingConfigError, match="has no networks"):
        evaluate_population("empty", tiny_net, [], task(), RECIPE)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a network was fine-tuned, and a candidate scored; `stop_at` interrupts that call of either."""
    counts = {"learning_curve": 0, "accuracy": 0, "stop_at": 0}

    def counted(name: str) -> None:
        original = getattr(populations, name)

        def call(*words: Any, **settings: Any) -> Any:
            counts[name] += 1
            if counts[name] == counts["stop_at"]:
                raise KeyboardInterrupt
            return original(*words, **settings)

        monkeypatch.setattr(populations, name, call)

    counted("learning_curve")
    counted("accuracy")
    return counts


def kept_in(folder: Path, **facts: Any) -> KeptResults:
    return KeptResults(RunStore(folder), network="tiny_net", **facts)


@pytest.mark.parametrize("interrupted_at", [1, 2, 3, 4])
def test_an_interrupted_population_goes_on_and_is_the_same(
    tmp_path: Path, calls: dict[str, int], interrupted_at: int
) -> None:
    networks, data = [*states(3), None], task()
    whole = evaluate_population("draws", tiny_net, networks, data, RECIPE)
    calls.update(learning_curve=0, stop_at=interrupted_at)
    with pytest.raises(KeyboardInterrupt):
        evaluate_population("draws", tiny_net, networks, data, RECIPE, kept=kept_in(tmp_path))
    calls.update(learning_curve=0, stop_at=0)
    resumed = evaluate_population("draws", tiny_net, networks, data, RECIPE, kept=kept_in(tmp_path))
    assert calls["learning_curve"] == 4 - (interrupted_at - 1)
    assert resumed == whole
    assert list(resumed.curves[0]) == list(whole.curves[0])
    assert evaluate_population("draws", tiny_net, networks, data, RECIPE, kept=kept_in(tmp_path)) == whole
    assert calls["learning_curve"] == 4 - (interrupted_at - 1)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4


def test_only_what_a_change_concerns_is_computed_again(tmp_path: Path, calls: dict[str, int]) -> None:
    networks, data = states(2), task()

    def computed(label: str = "draws", recipe: Recipe = RECIPE, seed: int = 0, **facts: Any) -> int:
        before = calls["learning_curve"]
        kept = kept_in(tmp_path, **facts)
        found = evaluate_population(label, tiny_net, networks, data, recipe, seed=seed, kept=kept)
        assert found == evaluate_population(label, tiny_net, networks, data, recipe, seed=seed)
        return calls["learning_curve"] - before - 2  # of which two were the comparison's

    assert computed() == 2
    assert computed() == 0
    assert computed(recipe=replace(RECIPE, learning_rate=1e-3)) == 2
    assert computed(recipe=replace(RECIPE, evaluate_at=(2, 6))) == 2
    assert computed(seed=1) == 2
    assert computed(label="others") == 2
    assert computed(data="other images") == 2
    networks[1] = {**networks[1], "0.weight": networks[1]["0.weight"] + 1}
    assert computed() == 1
    assert computed() == 0


def test_a_candidate_is_scored_once_whoever_asks(tmp_path: Path, calls: dict[str, int]) -> None:
    data, candidates = task(), states(3)
    expected = [validation_score(tiny_net, data, batch_size=16)(state) for state in candidates]
    calls["accuracy"] = 0
    for _ in range(2):
        score = validation_score(tiny_net, data, batch_size=16, kept=kept_in(tmp_path))
        assert [score(state) for state in itertools.chain(candidates, candidates)] == expected * 2
    assert calls["accuracy"] == 3
    validation_score(tiny_net, data, batch_size=32, kept=kept_in(tmp_path))(candidates[0])
    assert calls["accuracy"] == 4


def test_an_interrupted_choice_goes_on(tmp_path: Path, calls: dict[str, int]) -> None:
    data, candidates = task(), states(3)
    calls["stop_at"] = 3
    score = validation_score(tiny_net, data, batch_size=16, kept=kept_in(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        [score(state) for state in candidates]
    calls.update(accuracy=0, stop_at=0)
    score = validation_score(tiny_net, data, batch_size=16, kept=kept_in(tmp_path))
    assert len([score(state) for state in candidates]) == 3
    assert calls["accuracy"] == 1
