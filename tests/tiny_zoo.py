"""A task that a network of a thousand weights learns in seconds, and a zoo of such networks."""

from pathlib import Path
from typing import Any

import torch

from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.hyperrep.zoo_build import ZooPlan, build_zoo
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.hyperrep.zoo_training import ZooData


def noisy_prototypes(*, num_train: int = 192, num_classes: int = 10, size: int = 8, channels: int = 1) -> ZooData:
    """One random image for each class, with noise."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(num_classes, channels, size, size, generator=generator)

    def block(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(num_classes, (count,), generator=generator)
        return prototypes[labels] + 0.7 * torch.randn(count, channels, size, size, generator=generator), labels

    return ZooData(name="prototypes", train=block(num_train), validation=block(60), test=block(100))


def tiny_cnn(**settings: Any) -> ZooCNN:
    """A network of 1232 weights."""
    return ZooCNN("cnn-tiny", **settings)


def tiny_plan(num_seeds: int = 6, **settings: Any) -> ZooPlan:
    """Three epochs of each member, in stacks of four whatever is faster: roundings must not depend on that."""
    defaults = {"epochs": 3, "stack_size": 4, "learning_rate": 4e-3, "always_stacked": True}
    return ZooPlan.grid(range(num_seeds), **{**defaults, **settings})


def build_tiny_zoo(folder: Path, num_seeds: int = 6, **settings: Any) -> Zoo:
    """Train a zoo in about a second."""
    return build_zoo(folder, tiny_cnn, noisy_prototypes(), tiny_plan(num_seeds, **settings), architecture="cnn-tiny")
