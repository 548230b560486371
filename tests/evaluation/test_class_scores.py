import pytest
import torch
from torch import Tensor, nn

from hf_paraminit.evaluation.class_scores import ClassScores, batch_statistics, top_accuracies


class Scores(nn.Module):
    """Scores that are the images themselves, which makes accuracies known."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        if self.limit is not None and len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.flatten(1)


def labelled(count: int = 40, classes: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(count, classes, 1, 1), torch.randint(classes, (count,))


def test_the_best_and_the_five_best_are_counted() -> None:
    images, labels = labelled()
    found = top_accuracies(Scores(), (images, labels), batch_size=7)
    ranks = (images.flatten(1) > images.flatten(1).gather(1, labels[:, None])).sum(1)
    assert found["top1"] == pytest.approx(100 * float((ranks < 1).float().mean()))
    assert found["top5"] == pytest.approx(100 * float((ranks < 5).float().mean()))
    assert found["finite"] == 100


def test_fewer_classes_than_five_are_all_among_the_best() -> None:
    assert top_accuracies(Scores(), labelled(classes=3), batch_size=64)["top5"] == 100


def test_scores_that_are_not_finite_are_wrong() -> None:
    images, labels = labelled()
    images[:10] = torch.nan
    found = top_accuracies(Scores(), (images, labels), batch_size=64)
    assert found["finite"] == 75
    assert found["top5"] <= 75


def test_out_of_memory_the_batch_is_halved() -> None:
    data = labelled()
    assert top_accuracies(Scores(limit=6), data, batch_size=40) == {
        **top_accuracies(Scores(), data, batch_size=40),
        "batch_size": 5,
    }
    with pytest.raises(torch.OutOfMemoryError):
        top_accuracies(Scores(limit=0), data, batch_size=4)


def test_of_several_outputs_the_first_counts_and_of_a_record_the_logits() -> None:
    class Several(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, None]:
            return images + 1, None

    class Record(nn.Module):
        def forward(self, images: Tensor) -> object:
            return type("Output", (), {"logits": images + 2})()

    images = torch.zeros(2, 3)
    assert torch.equal(ClassScores(Several())(images), images + 1)
    assert torch.equal(ClassScores(Record())(images), images + 2)


def test_batch_statistics_are_used_and_running_ones_left_alone() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    images = 5 + 3 * torch.randn(16, 3, 4, 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with batch_statistics(network):
        inside = network(images)
    assert torch.allclose(inside.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0].training
    assert network[0].track_running_stats
