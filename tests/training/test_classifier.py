"""Training one classifier: its loss, its accuracy, and that it learns."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_loop import settings
from tiny_training import CLASSES, TASK, TinyNet
from torch import Tensor, nn

from hf_paraminit.training.classifier import AUXILIARY_WEIGHT, ClassifierTraining, accuracy_on, sgd
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
        optimizer=sgd(0.05, 0.0),
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
