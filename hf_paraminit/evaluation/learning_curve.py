"""How fast a network learns from its initial values: test accuracy after a few optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LabelledImages = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A short training, fixed before results are seen.

    Attributes:
        learning_rate: Of AdamW, after the warm-up.
        steps: Optimiser steps.
        batch_size: Images per step.
        warmup_steps: Steps of linear warm-up; the rate is constant after it.
        weight_decay: Decoupled.
        gradient_clip: Largest global L2 norm.
        evaluate_at: Steps after which the test accuracy is taken.
    """

    learning_rate: float
    steps: int = 150
    batch_size: int = 64
    warmup_steps: int = 10
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    evaluate_at: Sequence[int] = (10, 20, 40, 80, 150)


def learning_curve(
    model: nn.Module, train: LabelledImages, test: LabelledImages, recipe: Recipe, *, seed: int
) -> dict[int, float]:
    """Train in place and return the test accuracy in percent by step.

    Args:
        model: Network that ends in class scores.
        train: Images (N, C, H, W) and labels (N,).
        test: Likewise.
        recipe: How to train.
        seed: Decides the order of the images, nothing else: curves of equal seeds are paired.

    Returns:
        Accuracy after each step in `recipe.evaluate_at`.
    """
    images, labels = train
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    accuracies: dict[int, float] = {}
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, step / recipe.warmup_steps)
        batch = torch.randint(len(images), (recipe.batch_size,), generator=order)
        model.train()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        if step in recipe.evaluate_at:
            accuracies[step] = accuracy(model, test)
    return accuracies


@torch.no_grad()
def accuracy(model: nn.Module, data: LabelledImages) -> float:
    """Accuracy in percent, in eval mode."""
    images, labels = data
    model.eval()
    return 100 * (model(images).argmax(1) == labels).float().mean().item()


def mean_accuracy(curve: dict[int, float]) -> float:
    """Mean over the evaluated steps: about the area under the curve over log time."""
    return sum(curve.values()) / len(curve)
