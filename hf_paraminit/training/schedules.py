"""Learning-rate schedules of the published recipes, which change the rate once per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.loop import TrainingConfig

ScheduleName = Literal["cosine-warmup", "cosine", "step", "mstep", "constant"]
SCHEDULES: tuple[ScheduleName, ...] = ("cosine-warmup", "cosine", "step", "mstep", "constant")

WARMUP_EPOCHS, START_RATE = 5, 1e-5  # GHN-3
MILESTONES = (2 / 3, 5 / 6)  # GHN-1 and GHN-2: epochs 200 and 250 of 300
DECAY = 0.1


def epoch_factor(name: ScheduleName, epoch: int, epochs: int, learning_rate: float) -> float:
    """Factor that the peak rate is multiplied with.

    Args:
        name: "cosine-warmup" as in GHN-3 (linear from a rate of 1e-5 over 5 epochs, then a cosine to zero), "cosine",
            "step" (x 0.1 after each third), "mstep" (x 0.1 at 2/3 and 5/6, as in GHN-1 and GHN-2) or "constant".
        epoch: Which epoch, from 0.
        epochs: Epochs of the run.
        learning_rate: Peak rate.
    """
    if name == "cosine-warmup":
        if epoch < WARMUP_EPOCHS - 1:
            start = START_RATE / learning_rate
            return start + (1 - start) * epoch / (WARMUP_EPOCHS - 1)
        passed = (epoch - WARMUP_EPOCHS) / max(1, epochs - WARMUP_EPOCHS)  # negative once: just under 1, as published
        return max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if name == "step":
        return DECAY ** (epoch // math.ceil(epochs / 3))
    if name == "mstep":
        return DECAY ** sum(epoch >= round(share * epochs) for share in MILESTONES)
    return 1.0


def epoch_schedule(name: ScheduleName, epochs: int) -> Callable[[torch.optim.Optimizer, TrainingConfig], LambdaLR]:
    """Make the `schedule` argument of `train`: the steps of the run are divided into epochs.

    Raises:
        TrainingConfigError: There is no such schedule, or no epoch.
    """
    if name not in SCHEDULES or epochs < 1:
        raise TrainingConfigError(
            f"Schedule {name!r} over {epochs} epochs: expected one of {', '.join(SCHEDULES)} over at least 1 epoch."
        )

    def schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
        steps_per_epoch = config.steps / epochs
        factor = partial(epoch_factor, name, epochs=epochs, learning_rate=config.learning_rate)
        return LambdaLR(optimizer, lambda step: factor(min(epochs - 1, int(step / steps_per_epoch))))

    return schedule
