import pytest
import torch
from tiny_training import TASK, TinyNet
from torch import nn

from hf_paraminit.evaluation.features import feature_accuracy, find_classifier, pixel_accuracy


def test_the_pixels_of_digits_are_a_strong_baseline() -> None:
    """The figures of the protocol's section 1 (block split): 1-NN 95.6 %, logistic regression 91.0 %."""
    from hf_paraminit.evaluation.tasks import load_task

    task = load_task("digits", size=8)
    found = pixel_accuracy((task.train[0][:, :1], task.train[1]), (task.test[0][:, :1], task.test[1]))
    assert found["nearest_neighbour"] == pytest.approx(95.6, abs=0.3)
    assert found["linear"] == pytest.approx(91.0, abs=1.5)


def test_features_without_information_are_at_chance() -> None:
    torch.manual_seed(0)
    model = TinyNet(3, 3)
    informed = feature_accuracy(model, TASK.train, TASK.test)
    with torch.no_grad():
        model[3].weight.zero_()
    blind = feature_accuracy(model, TASK.train, TASK.test)
    assert informed["linear"] > 60
    assert blind["linear"] == pytest.approx(100 / 3, abs=1)


def test_a_model_without_a_classifier_or_with_infinite_features_has_no_figures() -> None:
    assert feature_accuracy(nn.Flatten(), TASK.train, TASK.test) == {}
    model = TinyNet(3, 3)
    with torch.no_grad():
        model[3].weight.fill_(float("inf"))
    assert feature_accuracy(model, TASK.train, TASK.test) == {}


def test_the_declared_classifier_wins_over_the_last_linear_layer() -> None:
    model = TinyNet(3, 3)
    assert find_classifier(model) is model[-1]
    model.get_classifier = lambda: model[0]  # type: ignore[method-assign, assignment]
    assert find_classifier(model) is model[-1]  # a declared one that is not linear is no use
    other = nn.Linear(1, 1)
    model.get_classifier = lambda: other  # type: ignore[method-assign, assignment]
    assert find_classifier(model) is other
