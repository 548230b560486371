import math

import pytest
import torch
from tiny_training import TASK, TinyNet

from hf_paraminit.evaluation.learning_curve import Recipe, learning_curve, mean_accuracy, steps_to_reach

RECIPE = Recipe(learning_rate=1e-2, steps=12, batch_size=16, warmup_steps=2, evaluate_at=(0, 4, 12))


def curve_of(*, seed: int = 0, recipe: Recipe = RECIPE) -> dict[int, float]:
    torch.manual_seed(0)
    return learning_curve(TinyNet(3, 3), TASK.train, TASK.test, recipe, seed=seed)


def test_it_learns_and_repeats_itself() -> None:
    first = curve_of()
    assert list(first) == [0, 4, 12]
    assert first[12] > first[0] + 20
    assert curve_of() == pytest.approx(first, abs=1e-6)


def test_the_seed_decides_the_order_of_the_images() -> None:
    assert curve_of(seed=1) != curve_of()


def test_a_training_that_diverges_ends_and_still_gives_a_curve() -> None:
    network = TinyNet(3, 3)
    torch.nn.init.constant_(network[-1].weight, math.inf)
    before = [parameter.clone() for parameter in network[0].parameters()]
    curve = learning_curve(network, TASK.train, TASK.test, RECIPE, seed=0)
    assert list(curve) == [0, 4, 12]
    assert curve[4] == curve[12]
    assert all(map(torch.equal, before, network[0].parameters()))


def test_auc_leaves_out_the_step_before_training() -> None:
    assert mean_accuracy({0: 10.0, 10: 50.0, 20: 70.0}) == 60.0


@pytest.mark.parametrize(
    ("target", "steps"), [(5.0, 0.0), (30.0, 5.0), (50.0, 10.0), (60.0, 15.0), (80.0, 25.0), (90.0, None)]
)
def test_steps_to_reach_interpolates_and_censors(target: float, steps: float | None) -> None:
    assert steps_to_reach({0: 10.0, 10: 50.0, 20: 70.0, 30: 90.0 - 1e-9}, target) == pytest.approx(steps)
