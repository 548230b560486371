"""The one training loop of the package, on Accelerate. It knows no method.

A method brings a module whose forward takes a batch and returns its metrics, `loss` among them, and a pure function
from a batch index to a batch. Because the function is pure, no data state has to be saved: a resumed run asks for the
same batches that the killed one would have seen.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from tqdm.auto import tqdm

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.io.atomic import atomic_write

logger = logging.getLogger("hf_paraminit")

BatchAt = Callable[[int], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long and how to train.

    Attributes:
        output: Folder of the run: `metrics.jsonl` and `checkpoints/`.
        steps: Optimiser steps of the whole run, which the learning-rate schedule spans.
        stop_after: Step to stop at before the schedule ends; None for the end. A later call can go on from there.
        learning_rate: Peak rate of AdamW.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up; a cosine to zero follows.
        gradient_clip: Largest global L2 norm of the gradients.
        gradient_accumulation: Batches per process and step.
        mixed_precision: Passed to Accelerate.
        log_every: Steps between records.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest are kept.
        seed: Seeds the model's own random draws (drop-out and the like); batches are addressed by index.
        cpu: Stay on the CPU even when a GPU is present.
    """

    output: str
    steps: int
    stop_after: int | None = None
    learning_rate: float = 4e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    gradient_clip: float = 5.0
    gradient_accumulation: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "gradient_accumulation", "log_every", "checkpoint_every", "keep_checkpoints")
        if bad := {name: getattr(self, name) for name in counts if getattr(self, name) < 1}:
            raise TrainingConfigError(f"Training configuration: expected values of at least 1, found {bad}.")
        amounts = ("learning_rate", "weight_decay", "warmup_steps", "gradient_clip")
        if bad := {name: getattr(self, name) for name in amounts if not 0 <= getattr(self, name) < math.inf}:
            raise TrainingConfigError(f"Training configuration: expected finite values of at least 0, found {bad}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise TrainingConfigError(
                f"Training configuration: mixed_precision={self.mixed_precision!r}; expected 'no', 'bf16' or 'fp16'."
            )

    @property
    def last_step(self) -> int:
        """Step that the run ends with."""
        return self.steps if self.stop_after is None else min(self.stop_after, self.steps)

    @property
    def trajectory(self) -> dict[str, Any]:
        """What decides the trained weights; a resumed run must not change it."""
        free = ("output", "stop_after", "log_every", "checkpoint_every", "keep_checkpoints", "cpu")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}


@dataclass(slots=True)
class Progress:
    """Counters that survive a restart."""

    step: int = 0
    skipped: int = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.step, self.skipped = state["step"], state["skipped"]


def train(model: nn.Module, batch_at: BatchAt, config: TrainingConfig) -> nn.Module:
    """Train `model` in place, resuming from the newest checkpoint in `config.output` when there is one.

    Run it under `accelerate launch` or `torchrun` for several processes: each takes every n-th batch.

    Args:
        model: `model(batch)` returns scalar metrics by name; `loss` is minimised.
        batch_at: Pure function from a batch index to a batch.
        config: Length, optimiser and output folder.

    Returns:
        The trained module, unwrapped.
    """
    accelerator = Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        # Each process may use other parts of the model in a step, e.g. the decoders its architectures need.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(config.seed, device_specific=True)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = _warmup_cosine(optimizer, config)
    progress = Progress()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule, progress)
    checkpoints = CheckpointFolder(Path(config.output) / "checkpoints", config.keep_checkpoints)
    _require_same_trajectory(accelerator, checkpoints, config)
    checkpoints.restore(accelerator)
    if progress.step > config.last_step:
        raise TrainingConfigError(
            f"The run in {config.output} is at step {progress.step}, past {config.last_step}, where it should "
            "stop. Ask for a later step, or use another output folder."
        )
    records = MetricLog(Path(config.output) / "metrics.jsonl", progress.step, is_writer=accelerator.is_main_process)
    bar = tqdm(
        total=config.last_step,
        initial=progress.step,
        desc="training",
        unit="step",
        disable=not accelerator.is_main_process,
    )
    while progress.step < config.last_step:
        metrics = _train_step(accelerator, wrapped, optimizer, schedule, progress, batch_at, config)
        bar.update()
        is_last = progress.step == config.last_step
        if progress.step % config.log_every == 0 or is_last:
            averaged = {name: float(accelerator.reduce(value, "mean")) for name, value in metrics.items()}
            records.write(progress, averaged, float(schedule.get_last_lr()[0]))
            bar.set_postfix({name: f"{value:.3g}" for name, value in averaged.items()}, refresh=False)
        if progress.step % config.checkpoint_every == 0 or is_last:
            checkpoints.save(accelerator, progress.step)
    bar.close()
    return accelerator.unwrap_model(wrapped)


def _train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    schedule: LRScheduler,
    progress: Progress,
    batch_at: BatchAt,
    config: TrainingConfig,
) -> dict[str, Tensor]:
    """One optimiser step over `gradient_accumulation` batches per process; steps with bad gradients are skipped."""
    model.train()
    optimizer.zero_grad()
    totals: dict[str, Tensor] = {}
    for micro_step in range(config.gradient_accumulation):
        position = progress.step * config.gradient_accumulation + micro_step
        metrics = model(batch_at(position * accelerator.num_processes + accelerator.process_index))
        accelerator.backward(metrics["loss"] / config.gradient_accumulation)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0) + value.detach() / config.gradient_accumulation
    norm = accelerator.clip_grad_norm_(model.parameters(), config.gradient_clip)
    # Gradients are already averaged over processes, so all of them decide alike. A gradient scaler (fp16) skips such
    # a step by itself, and has to see it, to lower its scale.
    is_finite = bool(torch.isfinite(norm))
    if is_finite or accelerator.scaler is not None:
        optimizer.step()
    if not is_finite:
        progress.skipped += 1
        logger.warning("Step %d skipped: gradient norm is %s.", progress.step + 1, float(norm))
    schedule.step()
    progress.step += 1
    return totals


def _require_same_trajectory(accelerator: Accelerator, checkpoints: CheckpointFolder, config: TrainingConfig) -> None:
    """Refuse to resume under other settings: the schedule and the batches would silently be wrong."""
    path = Path(config.output) / "settings.json"
    if checkpoints.steps() and path.exists():
        former = json.loads(path.read_text())
        if changed := {
            name: (former.get(name), value) for name, value in config.trajectory.items() if former.get(name) != value
        }:
            raise TrainingConfigError(
                f"Cannot resume the run in {config.output}: settings (before, now) differ: {changed}. Use the former "
                "settings, or another output folder."
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(config.trajectory, indent=2) + "\n")


def _warmup_cosine(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LRScheduler:
    warmup_steps = max(1, min(config.warmup_steps, config.steps // 2))
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, config.steps - warmup_steps))
    return SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])


class MetricLog:
    """Appends one JSON line per record; records after a restored step are dropped, because they will be repeated."""

    def __init__(self, path: Path, step: int, *, is_writer: bool) -> None:
        self.path = path
        self.is_writer = is_writer
        self.started = time.perf_counter()
        if is_writer:
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            # A killed run may have left half a line at the end.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(kept))

    def write(self, progress: Progress, metrics: Mapping[str, float], learning_rate: float) -> None:
        """Append one record."""
        if self.is_writer:
            seconds = round(time.perf_counter() - self.started, 3)
            # JSON has no NaN.
            values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            record = {**progress.state_dict(), **values, "learning_rate": learning_rate, "seconds": seconds}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


class CheckpointFolder:
    """Step-numbered checkpoints; a folder appears under its final name only when it is complete."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("step_*") if re.fullmatch(r"step_\d+", path.name))

    def restore(self, accelerator: Accelerator) -> None:
        """Load the newest checkpoint, if any."""
        if found := self.steps():
            accelerator.load_state(str(found[-1]))
            logger.info("Resumed from %s.", found[-1])

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Write a checkpoint under a temporary name, rename it, delete the oldest."""
        final = self.path / f"step_{step:08d}"
        unfinished = final.with_suffix(".unfinished")
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()
