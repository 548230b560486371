"""Networks and images that are small enough to evaluate in a moment."""

import functools

import torch
from torch import Tensor, nn

from hf_paraminit.evaluation.network_cells import Network
from hf_paraminit.evaluation.tasks import Task

CLASSES, SIDE = 4, 16


class TinyNet(nn.Module):
    """Two convolutions and a classifier; in the manner of DeepNets-1M it puts out a pair."""

    def __init__(self, width: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * width, classes)
        self.expected_input_sz = (3, SIDE, SIDE)

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        features = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(images)))))
        return self.fc(features.mean((2, 3))), None


class BrokenNet(nn.Module):
    """A network whose constructor fails, as other people's may."""

    def __init__(self) -> None:
        raise RuntimeError("no such layer")


def tiny_task(count: int = 40) -> Task:
    """Images whose class is the quarter that is bright, so that it can be learned."""
    generator = torch.Generator().manual_seed(0)

    def block(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(number) % CLASSES
        images = torch.randn(number, 3, SIDE, SIDE, generator=generator)
        for label in range(CLASSES):
            row, column = divmod(label, 2)
            half = SIDE // 2
            images[labels == label, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 2
        return images, labels

    return Task(
        name="quarters", train=block(2 * count), validation=block(count), test=block(count), num_classes=CLASSES
    )


def tiny_networks(count: int = 3, group: str = "tiny") -> list[Network]:
    """Networks of different widths."""
    return [
        Network(group=group, name=str(index), build=functools.partial(TinyNet, 8 + 4 * index)) for index in range(count)
    ]


BROKEN = Network(group="tiny", name="broken", build=BrokenNet)
