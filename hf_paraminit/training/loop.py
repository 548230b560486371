"""The one training loop of the package, on Accelerate. It knows no method.

A method brings a module whose forward takes a batch and returns its metrics, `loss` among them, and a pure function
from a batch index to a batch. Because the function is pure, no data state has to be saved: a resumed run asks for the
same batches that the killed one would have seen.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradScalerKwargs, set_seed
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from tqdm.auto import tqdm

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.checkpoints import CheckpointFolder, require_same_run
from hf_paraminit.training.interruption import Interruption
from hf_paraminit.training.records import KNOWN_TRACKERS, MetricLog, average_over_processes, require_trackers

logger = logging.getLogger("hf_paraminit")

BatchAt = Callable[[int], Any]
NewOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
AfterStep = Callable[[nn.Module, int], None]

# Gradient scaler of fp16: what GHN-3 was trained with, since its losses overflow early and rarely later.
SCALE_GROWTH_INTERVAL, LOWEST_SCALE = 100, 1024.0
# A run that skips this many steps in a row has diverged: its weights no longer change, so nothing will mend it.
MOST_SKIPPED_IN_A_ROW = 50


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
        gradient_clip: Largest global L2 norm of the gradients; 0 for no limit.
        gradient_accumulation: Batches per process and step.
        mixed_precision: Passed to Accelerate.
        log_every: Steps between records.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest are kept.
        seed: Seeds the model's own random draws (drop-out and the like); batches are addressed by index.
        cpu: Stay on the CPU even when a GPU is present.
        trackers: Names of Accelerate's trackers that get the records too, e.g. ("tensorboard",).
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
    trackers: tuple[str, ...] = ()

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
        object.__setattr__(self, "trackers", tuple(self.trackers))
        if unknown := [name for name in self.trackers if name not in KNOWN_TRACKERS]:
            raise TrainingConfigError(
                f"Training configuration: unknown trackers {unknown}; expected some of {', '.join(KNOWN_TRACKERS)}."
            )

    @property
    def last_step(self) -> int:
        """Step that the run ends with."""
        return self.steps if self.stop_after is None else min(self.stop_after, self.steps)

    @property
    def trajectory(self) -> dict[str, Any]:
        """What decides the trained weights; a resumed run must not change it."""
        free = ("output", "stop_after", "log_every", "checkpoint_every", "keep_checkpoints", "cpu", "trackers")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}


class Stateful(Protocol):
    """What can be kept in a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@runtime_checkable
class Divisible(Protocol):
    """A batch that can be taken in parts when it does not fit into memory."""

    def __len__(self) -> int:
        """Size, by which the metrics of its parts are weighted."""
        ...

    def halves(self) -> tuple[Self, ...]:
        """Two parts, or none if it cannot be smaller."""
        ...


@dataclass(slots=True)
class Progress:
    """Counters that survive a restart.

    Attributes:
        step: Finished steps, skipped ones included.
        skipped: Steps that changed nothing, since their gradients were not finite.
        skipped_in_a_row: Those since the last step that did.
        halved: Batches that were taken in two parts, since they did not fit into memory.
        dropped: Batches, or parts of them, that did not fit and were as small as can be.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    halved: int = 0
    dropped: int = 0

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def counters(self) -> dict[str, int]:
        """What records show."""
        return {"step": self.step, "skipped": self.skipped, "halved": self.halved, "dropped": self.dropped}


def train(
    model: nn.Module,
    batch_at: BatchAt,
    config: TrainingConfig,
    *,
    optimizer: NewOptimizer | None = None,
    schedule: Callable[[torch.optim.Optimizer, TrainingConfig], LRScheduler] | None = None,
    after_step: AfterStep | None = None,
    stateful: Sequence[Stateful] = (),
    identity: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Train `model` in place, resuming from the newest checkpoint in `config.output` when there is one.

    Run it under `accelerate launch` or `torchrun` for several processes: each takes every n-th batch. A batch that has
    `halves()` is taken in parts when it does not fit into memory. SIGINT and SIGTERM end the run after the present step
    with a checkpoint.

    Args:
        model: `model(batch)` returns scalar metrics by name; `loss` is minimised.
        batch_at: Pure function from a batch index to a batch.
        config: Length, optimiser and output folder.
        optimizer: Makes the optimiser of the model; None for AdamW as `config` says.
        schedule: Makes the schedule of the optimiser, stepped once per step; None for warm-up and cosine.
        after_step: Called on every process with the unwrapped model and the number of finished steps.
        stateful: Objects that every checkpoint keeps, e.g. an average of the weights.
        identity: What else decides the trained weights (architecture, data), as JSON values. Resuming with another one
            is refused.

    Returns:
        The trained module, unwrapped. Under FSDP a copy, trained on the main process only.

    Raises:
        TrainingConfigError: Settings that differ from those of the run in `config.output`, or a run that diverged.
        CheckpointError: A checkpoint that cannot be read.
        OutputError: A checkpoint that cannot be written.
        MissingDependencyError: A tracker that is not installed.
    """
    require_trackers(config.trackers)
    accelerator = _accelerator(config)
    set_seed(config.seed, device_specific=True)
    plain_optimizer = optimizer(model) if optimizer else _adamw(model, config)
    # FSDP cuts the model itself into shards, so the whole is put together in a copy.
    copied = copy.deepcopy(model) if accelerator.distributed_type == DistributedType.FSDP else None
    wrapped, prepared = accelerator.prepare(model, plain_optimizer)
    run = _Run(
        accelerator,
        wrapped,
        prepared,
        schedule(plain_optimizer, config) if schedule else _warmup_cosine(plain_optimizer, config),
        Progress(),
        batch_at,
        config,
        Interruption(),
    )
    accelerator.register_for_checkpointing(run.schedule, run.progress, *stateful)
    output = Path(config.output)
    checkpoints = CheckpointFolder(output / "checkpoints", config.keep_checkpoints)
    require_same_run(output, accelerator, {**run.settings, **(identity or {})}, checkpoints)
    checkpoints.restore(accelerator)
    if run.progress.step > config.last_step:
        raise TrainingConfigError(
            f"The run in {config.output} is at step {run.progress.step}, past {config.last_step}, where it should "
            "stop. Ask for a later step, or use another output folder."
        )
    accelerator.init_trackers("hf_paraminit", config=run.settings)
    with run.interruption:
        _run_to_the_end(
            run, checkpoints, MetricLog(output / "metrics.jsonl", run.progress.step, accelerator), after_step
        )
    for tracker in accelerator.trackers:
        tracker.finish()
    return _whole_model(run, copied)


@dataclass(eq=False)
class _Run:
    """A run between its start and its end, on one process."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    schedule: LRScheduler
    progress: Progress
    batch_at: BatchAt
    config: TrainingConfig
    interruption: Interruption

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the trained weights: what counts is the number of batches per step, however it is shared out."""
        settings = self.config.trajectory
        settings["batches_per_step"] = settings.pop("gradient_accumulation") * self.accelerator.num_processes
        return settings

    @property
    def is_replicated(self) -> bool:
        """Whether each process has the whole model, so that it may run it as often as it needs to."""
        return isinstance(self.model, DistributedDataParallel) or self.accelerator.num_processes == 1


def _accelerator(config: TrainingConfig) -> Accelerator:
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.mixed_precision:
        AcceleratorState._reset_state()  # an earlier run of this process; Accelerate refuses to change it otherwise
    return Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output,
        kwargs_handlers=[GradScalerKwargs(growth_interval=SCALE_GROWTH_INTERVAL)],
    )


def _whole_model(run: _Run, copied: nn.Module | None) -> nn.Module:
    if copied is None:
        return run.accelerator.unwrap_model(run.model)
    state = run.accelerator.get_state_dict(run.model)  # every process takes part
    if run.accelerator.is_main_process:
        copied.load_state_dict(state)
    return copied


def _adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)


def _warmup_cosine(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LRScheduler:
    warmup_steps = max(1, min(config.warmup_steps, config.steps // 2))
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, config.steps - warmup_steps))
    return SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])


def _run_to_the_end(run: _Run, checkpoints: CheckpointFolder, log: MetricLog, after_step: AfterStep | None) -> None:
    config, progress = run.config, run.progress
    bar = tqdm(
        total=config.last_step,
        initial=progress.step,
        desc="training",
        unit="step",
        disable=not run.accelerator.is_main_process,
    )
    while progress.step < config.last_step:
        metrics, is_interrupted = _train_step(run)
        if after_step is not None:
            after_step(run.accelerator.unwrap_model(run.model), progress.step)
        bar.update()
        is_last = is_interrupted or progress.step == config.last_step
        if progress.step % config.log_every == 0 or is_last:
            averaged = average_over_processes({name: float(value) for name, value in metrics.items()})
            log.write(progress.counters, averaged, float(run.schedule.get_last_lr()[0]))
            bar.set_postfix({name: f"{value:.3g}" for name, value in averaged.items()}, refresh=False)
        if progress.step % config.checkpoint_every == 0 or is_last:
            checkpoints.save(run.accelerator, progress.step)
        if is_interrupted:
            run.interruption.raise_received()
    bar.close()


def _train_step(run: _Run) -> tuple[dict[str, Tensor], bool]:
    """One optimiser step; one with bad gradients is skipped. Return its metrics, and whether the run has to stop."""
    accelerator, progress, parameters = run.accelerator, run.progress, list(run.model.parameters())
    run.model.train()
    totals, halved, dropped = _accumulate(run)
    halved, dropped, received = _share_gradients(run, [halved, dropped, run.interruption.received])
    norm = accelerator.clip_grad_norm_(parameters, run.config.gradient_clip or math.inf)
    # Gradients are averaged over processes, so all of them decide alike. A gradient scaler (fp16) skips such a step by
    # itself, and has to see it, to lower its scale.
    is_good = bool(torch.isfinite(norm)) and any(parameter.grad is not None for parameter in parameters)
    if is_good or accelerator.scaler is not None:
        run.optimizer.step()
        _keep_scale_up(accelerator)
    progress.halved += halved
    progress.dropped += dropped
    if is_good:
        progress.skipped_in_a_row = 0
    else:
        _count_skipped(progress, float(norm))
    run.schedule.step()
    progress.step += 1
    return totals, bool(received)


def _accumulate(run: _Run) -> tuple[dict[str, Tensor], int, int]:
    """Gather gradients over the batches of one step; a batch that does not fit into memory is taken in halves.

    Returns:
        Mean metrics of what was computed, and the numbers of halved and of dropped batches.
    """
    accumulated, processes = run.config.gradient_accumulation, run.accelerator.num_processes
    first = run.progress.step * accumulated * processes + run.accelerator.process_index
    parts = [(run.batch_at(first + turn * processes), 1 / accumulated) for turn in range(accumulated)]
    halved = dropped = 0
    while True:
        totals, failed = _run_parts(run, parts)
        if failed is None:
            return totals, halved, dropped
        clear_device_cache(garbage_collection=True)
        batch, share = parts[failed]
        halves = batch.halves()
        parts[failed : failed + 1] = [(half, share * len(half) / len(batch)) for half in halves]
        halved, dropped = halved + bool(halves), dropped + (not halves)
        outcome = "halved" if halves else "dropped"
        logger.warning("Step %d: out of memory; a batch of %d was %s.", run.progress.step + 1, len(batch), outcome)


def _run_parts(run: _Run, parts: Sequence[tuple[Any, float]]) -> tuple[dict[str, Tensor], int | None]:
    """Compute the gradients of some batches from zero; return the metrics, and which part ran out of memory."""
    run.optimizer.zero_grad()
    totals: dict[str, Tensor] = {}
    for position, (batch, share) in enumerate(parts):
        is_last = position == len(parts) - 1
        with nullcontext() if is_last and not run.is_replicated else run.accelerator.no_sync(run.model):
            try:
                metrics = run.model(batch)
                run.accelerator.backward(metrics["loss"] * share)
            except RuntimeError as error:
                if not (run.is_replicated and isinstance(batch, Divisible) and should_reduce_batch_size(error)):
                    raise
                return totals, position
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0) + value.detach() * share
    return totals, None


def _share_gradients(run: _Run, counts: list[int]) -> list[int]:
    """Average the gradients over processes, and sum some counts.

    DDP would do this during the backward pass, but all its processes have to run that equally often, and one of them
    may have had to halve a batch. A parameter that took no part anywhere keeps no gradient, as on a single process.
    """
    accelerator = run.accelerator
    if accelerator.num_processes == 1:
        return counts
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    is_used = [parameter.grad is not None for parameter in parameters] if run.is_replicated else []
    shared = torch.tensor([*counts, *is_used], dtype=torch.int64, device=accelerator.device)
    dist.all_reduce(shared)
    used = [parameter for parameter, users in zip(parameters, shared[len(counts) :].tolist(), strict=False) if users]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in used if parameter.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    if gradients:
        torch._foreach_div_(gradients, accelerator.num_processes)
    return shared[: len(counts)].tolist()


def _keep_scale_up(accelerator: Accelerator) -> None:
    scaler = accelerator.scaler
    if scaler is not None and scaler.get_scale() < LOWEST_SCALE:
        scaler.update(LOWEST_SCALE)


def _count_skipped(progress: Progress, norm: float) -> None:
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    logger.warning("Step %d skipped: gradient norm is %s.", progress.step + 1, norm)
    if progress.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
        raise TrainingConfigError(
            f"Training diverged: {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step {progress.step + 1}, had gradients "
            "that are not finite. Start again with a lower learning rate, more warm-up or without mixed precision; or "
            "delete the newest checkpoints to go on from an earlier one."
        )
