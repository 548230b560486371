"""Whether scores keep their size when a network gets wider: the coordinate check of muP (arXiv 2203.03466, D.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Build = Callable[[int], tuple[nn.Module, Optimizer]]


def coordinate_check(
    build: Build,
    widths: Sequence[int],
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
) -> float:
    """Train networks of several widths for a few steps, and measure how their scores grow with the width.

    Args:
        build: width -> a new network and its optimizer; torch's generator is seeded before each call.
        widths: at least two, for instance 1, 2, 4 and 8 times the base.
        images: (B, channels, height, width), the batch of every step.
        labels: (B,) int64.
        steps: optimizer steps, 1 to 5.
        seeds: networks to average over.

    Returns:
        Slope of log mean |score| against log width. Between -0.1 and 0.1 the parametrization is right; torch's own
        gives values towards 1.
    """
    sizes = [np.mean([_score_size(build, width, images, labels, steps, seed) for seed in seeds]) for width in widths]
    slope, _ = np.polyfit(np.log(widths), np.log(sizes), 1)
    return float(slope)


def _score_size(
    build: Build,
    width: int,
    images: Tensor,
    labels: Tensor,
    steps: int,
    seed: int,
) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, optimizer = build(width)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        with torch.no_grad():
            return model(images).abs().mean().item()
