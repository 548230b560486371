"""Training one classifier: its loss, its accuracy, and that it learns."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_loop import settings
from tiny_training import CLASSES, TASK, TinyNet
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.classifier import (
    AUXILIARY_WEIGHT,
    OPTIMIZERS,
    ClassifierTraining,
    DropPathSchedule,
    accuracy_on,
    new_optimizer,
)
from hf_paraminit.training.loop import train


def batch_at(index: int) -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(120, generator=torch.Generator().manual_seed(index))[:30]
    return TASK.train[0][chosen], TASK.train[1][chosen]


def test_a_network_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TinyNet(CLASSES, 3)
    assert accuracy_on(network, iter([TASK.test])) < 0.7
    train(
        ClassifierTraining(network),
        batch_at,
        settings(tmp_path, steps=60, checkpoint_every=60),
        optimizer=new_optimizer("sgd", 0.05, 0.0),
    )
    assert accuracy_on(network, iter([TASK.test])) > 0.9


def test_auxiliary_logits_count_less() -> None:
    class Two(nn.Module):
        def __init__(self, has_auxiliary: bool) -> None:
            super().__init__()
            self.w, self.has_auxiliary = nn.Parameter(torch.eye(3)), has_auxiliary

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            return x @ self.w, x @ self.w * 2 if self.has_auxiliary else None

    x, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    main, auxiliary = (F.cross_entropy(factor * x, labels, label_smoothing=0.1) for factor in (1, 2))
    for has_auxiliary, expected in ((False, main), (True, main + AUXILIARY_WEIGHT * auxiliary)):
        found = ClassifierTraining(Two(has_auxiliary), label_smoothing=0.1)((x, labels))["loss"]
        torch.testing.assert_close(found, expected)


def test_binary_loss_asks_whether_each_class_is_there() -> None:
    """timm's loss on shares of classes: a class counts as present from a fifth of the image on."""
    network = nn.Linear(4, 3)
    images = torch.randn(2, 4)
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])
    present = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    metrics = ClassifierTraining(network, loss="binary")((images, shares))
    logits = network(images)
    torch.testing.assert_close(metrics["loss"], F.binary_cross_entropy_with_logits(logits, present))
    assert metrics["accuracy"] == (logits.argmax(1) == torch.tensor([0, 2])).float().mean()
    single = ClassifierTraining(network, loss="binary")((images, torch.tensor([1, 2])))["loss"]
    one_hot = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(single, F.binary_cross_entropy_with_logits(logits, one_hot))


def test_mixed_targets_are_smoothed_like_plain_ones() -> None:
    network, images = nn.Linear(4, 3), torch.randn(2, 4)
    plain, shares = (
        ClassifierTraining(network, label_smoothing=0.1)((images, targets))["loss"]
        for targets in (torch.tensor([0, 2]), torch.eye(3)[[0, 2]])
    )
    torch.testing.assert_close(plain, shares)


@pytest.mark.parametrize(("loss", "smoothing"), [("hinge", 0.0), ("binary", 0.1)])
def test_losses_that_do_not_exist_are_refused(loss: str, smoothing: float) -> None:
    with pytest.raises(TrainingConfigError, match="expected 'cross-entropy', or 'binary'"):
        ClassifierTraining(nn.Linear(2, 2), loss=loss, label_smoothing=smoothing)  # type: ignore[arg-type]


def test_optimizers_and_what_they_decay() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decays = {}
    for name in OPTIMIZERS:
        optimizer = new_optimizer(name, 0.1, 0.5)(network)
        assert type(optimizer).__name__.lower() == name
        assert {group["lr"] for group in optimizer.param_groups} == {0.1}
        decays[name] = sorted((group["weight_decay"], len(group["params"])) for group in optimizer.param_groups)
    assert decays["sgd"] == [(0.5, 4)]
    assert decays["adamw"] == decays["lamb"] == [(0.0, 3), (0.5, 1)]
    with pytest.raises(TrainingConfigError, match="no optimiser 'adam'"):
        new_optimizer("adam", 0.1, 0.0)  # type: ignore[arg-type]


class Droppable(TinyNet):
    """Notes the rate of every training step."""

    def __init__(self) -> None:
        super().__init__(CLASSES, 3)
        self.drop_path_rate, self.seen = 0.0, []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(self.drop_path_rate)
        return super().forward(x)


def test_drop_path_rises_by_epoch_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    rates = []
    for stop_after in (3, 8):
        network = Droppable()
        schedule = DropPathSchedule(network, 0.2, steps=8, epochs=4)
        train(
            ClassifierTraining(network),
            batch_at,
            settings(tmp_path, steps=8, stop_after=stop_after, checkpoint_every=1),
            after_step=schedule.after_step,
            stateful=[schedule],
        )
        rates += network.seen
    assert rates == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_rates_outside_are_refused(rate: float) -> None:
    with pytest.raises(TrainingConfigError, match="drop-path rate"):
        DropPathSchedule(Droppable(), rate, steps=2, epochs=1)


def test_accuracy_is_of_all_images() -> None:
    logits = torch.eye(3)
    batches = [(logits, torch.tensor([0, 1, 0])), (logits[:1], torch.tensor([0]))]

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    assert accuracy_on(Same(), iter(batches)) == pytest.approx(3 / 4)
