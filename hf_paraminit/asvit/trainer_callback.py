"""Progressive tokenisation in the Trainer of Transformers. Importing this file imports transformers; nothing else does.

from hf_paraminit.asvit.trainer_callback import ProgressiveTokenization

trainer = Trainer(model, arguments, callbacks=[ProgressiveTokenization()], ...)
"""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_paraminit.asvit.tokenization import Levels, TokenizationSchedule, tokenized_part


class ProgressiveTokenization(TrainerCallback):
    """Trains on coarser tokens first.

    Between optimiser steps, so whenever the Trainer evaluates or saves, the model has its own tokens. The step alone
    decides, so a run that is resumed from a checkpoint goes on at the right level.

    Args:
        levels: (share of the training at which it begins, stride in pixels); None for the published shares with 4, 2
            and 1 times the model's own stride.

    Raises:
        ScoreError: When training begins: levels that do not begin at 0 and rise, or another kind of model.
    """

    def __init__(self, levels: Levels | None = None) -> None:
        self.levels = levels
        self._schedule: TokenizationSchedule | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        part = tokenized_part(kwargs["model"])
        steps = state.max_steps
        published = TokenizationSchedule.published(part, steps)
        self._schedule = published if self.levels is None else TokenizationSchedule(steps, self.levels)
        if state.is_world_process_zero:
            tqdm.write(f"Progressive tokenisation: {self._schedule.describe(part, unit='steps')}.")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._schedule is not None
        self._schedule.step(kwargs["model"], state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._schedule is not None
        self._schedule.finish(kwargs["model"])
