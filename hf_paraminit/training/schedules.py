"""Learning-rate schedules of the published recipes, which change the rate once per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def epoch_factor(
    name: ScheduleName,
    epoch: int,
    epochs: int,
    learning_rate: float,
    *,
    warmup_epochs: int = WARMUP_EPOCHS,
    start_rate: float = START_RATE,
    milestones: Sequence[int] = (),
) -> float:
    """Factor that the peak rate is multiplied with.

    Args:
        name: "cosine-warmup" as in GHN-3 (linear from a start rate over some epochs, then a cosine to zero), "cosine",
            "step" (x 0.1 after each third), "mstep" (x 0.1 at milestones) or "constant".
        epoch: Which epoch, from 0.
        epochs: Epochs of the run.
        learning_rate: Peak rate.
        warmup_epochs: Of "cosine-warmup".
        start_rate: Of "cosine-warmup", in epoch 0.
        milestones: Of "mstep", epochs from 0; by default 2/3 and 5/6 of the run, as in GHN-1 and GHN-2.
    """
    if name == "cosine-warmup":
        if epoch < warmup_epochs - 1:
            start = start_rate / learning_rate
            return start + (1 - start) * epoch / (warmup_epochs - 1)
        passed = (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)  # negative once: just under 1, as published
        return max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if name == "step":
        return DECAY ** (epoch // math.ceil(epochs / 3))
    if name == "mstep":
        places = milestones or [round(share * epochs) for share in MILESTONES]
        return DECAY ** sum(epoch >= place for place in places)
    return 1.0


def epoch_at(step: int, steps: int, epochs: int) -> int:
    """Epoch that a step belongs to, where the steps of a run are divided into epochs."""
    return min(epochs - 1, int(step / (steps / epochs)))


def epoch_schedule(
    name: ScheduleName,
    epochs: int,
    *,
    warmup_epochs: int = WARMUP_EPOCHS,
    start_rate: float = START_RATE,
    milestones: Sequence[int] = (),
) -> Callable[[torch.optim.Optimizer, TrainingConfig], LambdaLR]:
    """Make the `schedule` argument of `train`: the steps of the run are divided into epochs.

    Args:
        name: As for `epoch_factor`.
        epochs: Epochs of the run.
        warmup_epochs: As for `epoch_factor`.
        start_rate: Likewise.
        milestones: Likewise.

    Raises:
        TrainingConfigError: There is no such schedule, no epoch, or a warm-up or milestones outside the run.
    """
    if name not in SCHEDULES or epochs < 1:
        raise TrainingConfigError(
            f"Schedule {name!r} over {epochs} epochs: expected one of {', '.join(SCHEDULES)} over at least 1 epoch."
        )

    is_outside = any(not 0 < epoch < epochs for epoch in milestones)
    if warmup_epochs < 1 or start_rate < 0 or is_outside:
        raise TrainingConfigError(
            f"Schedule {name!r} over {epochs} epochs: expected a warm-up of at least 1 epoch from a rate of at least 0 "
            f"and milestones within the run, found {warmup_epochs}, {start_rate} and {list(milestones)}."
        )

    def schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
        factor = partial(
            epoch_factor,
            name,
            epochs=epochs,
            learning_rate=config.learning_rate,
            warmup_epochs=warmup_epochs,
            start_rate=start_rate,
            milestones=tuple(milestones),
        )
        return LambdaLR(optimizer, lambda step: factor(epoch_at(step, config.steps, epochs)))

    return schedule
