"""Populations of networks: what is measured of them, and that populations are treated alike."""

import pytest
import torch
from tiny_representation import tiny_net
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.population import evaluate_population, validation_score
from hf_paraminit.evaluation.tasks import Task

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
