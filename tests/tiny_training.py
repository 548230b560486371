"""A task and a network so small that a training takes a tenth of a second."""

import torch
from torch import Tensor, nn

from hf_paraminit.evaluation.nets import Net
from hf_paraminit.evaluation.tasks import Task

SIZE, CLASSES = 8, 3


class TinyNet(nn.Sequential):
    """Two convolutions, one batch norm, one classifier."""

    def __init__(self, num_classes: int, in_chans: int, width: int = 8) -> None:
        super().__init__(
            nn.Conv2d(in_chans, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, num_classes),
        )


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright stripe whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 2 * label : 2 * label + 2] += 1.5
    return images, labels


TASK = Task(name="stripes", train=stripes(120, 0), validation=stripes(60, 1), test=stripes(90, 2), num_classes=CLASSES)
NET = Net(name="tiny", architecture=TinyNet, learning_rate=1e-2)
