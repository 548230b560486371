"""How fast a network learns from its initial values: accuracy after a few optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        evaluate_at: Steps after which the accuracy is taken; 0 is before the first.
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
    """Train in place and return the accuracy in percent by step.

    A training whose loss or gradient stops being finite ends there; the later accuracies are those of the weights it
    had then.

    Args:
        model: Network that ends in class scores.
        train: Images (N, C, H, W) and labels (N,).
        test: Likewise.
        recipe: How to train.
        seed: Decides the order of the images and torch's draws during training (drop-out), nothing else: curves of
            equal seeds are paired.

    Returns:
        Accuracy after each step in `recipe.evaluate_at`.
    """
    # Convolutions on the CPU are up to twice as fast in this layout.
    model.to(memory_format=torch.channels_last)
    images, labels = train[0].to(memory_format=torch.channels_last), train[1]
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    accuracies = {0: accuracy(model, test)} if 0 in recipe.evaluate_at else {}
    is_alive = True
    for step in range(1, recipe.steps + 1):
        if is_alive:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1.0, step / recipe.warmup_steps)
            batch = torch.randint(len(images), (recipe.batch_size,), generator=order)
            is_alive = _train_step(model, optimizer, images[batch], labels[batch], recipe.gradient_clip)
        if step in recipe.evaluate_at:
            accuracies[step] = accuracy(model, test)
    return accuracies


def _train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, gradient_clip: float
) -> bool:
    """One optimiser step; False, and nothing changed, where the gradient is not finite."""
    model.train()
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    if not torch.isfinite(norm + loss):
        return False
    optimizer.step()
    return True


@torch.no_grad()
def accuracy(model: nn.Module, data: LabelledImages) -> float:
    """Accuracy in percent, in eval mode."""
    images, labels = data
    model.eval()
    scores = torch.cat([model(part) for part in images.split(500)])
    return 100 * (scores.argmax(1) == labels).float().mean().item()


def mean_accuracy(curve: Mapping[int, float]) -> float:
    """AUC: mean over the evaluated steps after the first, about the area under the curve over log time."""
    values = [value for step, value in curve.items() if step > 0]
    return sum(values) / len(values)


def steps_to_reach(curve: Mapping[int, float], target: float) -> float | None:
    """Steps until the accuracy first reaches `target` percent, linearly interpolated; None if it does not."""
    points = sorted(curve.items())
    for (step, value), (next_step, next_value) in pairwise(points):
        if value >= target:
            return float(step)
        if next_value >= target:
            return step + (target - value) / (next_value - value) * (next_step - step)
    return float(points[-1][0]) if points[-1][1] >= target else None
