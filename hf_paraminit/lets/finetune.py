"""Stage 2: train a net that a learngene has made, on labels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.lets.train import Batch, Recipe, adamw, class_scores, warmup_cosine
from hf_paraminit.training.loop import TrainingConfig, train

RATE_IMAGES = 512  # images in a step that the learning rate is meant for


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """How a Des-Net is trained. The defaults are those of the one published command (12 layers of width 768, ImageNet).

    Published with it: the augmentation of DeiT (`lets.images.AugmentedBatches`), stochastic depth of 0.1 (an argument
    of the model), no teacher, and one rate for all layers.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step and process.
        learning_rate: Peak rate of AdamW for 512 images in a step; the rate grows with the images of all processes.
        min_learning_rate: Where the cosine ends, for 512 images likewise.
        warmup_epochs: Of linear warm-up from zero.
        weight_decay: Of matrices; vectors, positions and tokens have none.
        label_smoothing: Where labels are class numbers; augmented batches bring shares that are smoothed already.
        gradient_clip: Largest global L2 norm of the gradients; published without.
    """

    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 1e-5
    min_learning_rate: float = 1e-6
    warmup_epochs: int = 0
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    gradient_clip: float = 1e12

    def __post_init__(self) -> None:
        faults = [f"{name}={getattr(self, name)}" for name in ("epochs", "batch_size") if getattr(self, name) < 1]
        if self.warmup_epochs < 0:
            faults.append(f"warmup_epochs={self.warmup_epochs}")
        if not 0 <= self.min_learning_rate <= self.learning_rate < float("inf"):
            faults.append(f"learning_rate={self.learning_rate} with min_learning_rate={self.min_learning_rate}")
        if not 0 <= self.label_smoothing < 1:
            faults.append(f"label_smoothing={self.label_smoothing}")
        if faults:
            raise TrainingConfigError(f"LeTs fine-tuning: these cannot be: {'; '.join(faults)}.")


class LabelTraining(nn.Module):
    """The objective: cross-entropy on labels.

    Args:
        model: Classifier of timm, of Transformers, or any module that gives scores (B, K).
        label_smoothing: Where labels are class numbers.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy`, a share; labels are (B,) class numbers or (B, K) shares."""
        device = next(self.parameters()).device
        images, targets = batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
        scores = class_scores(self.model, images).float()
        smoothing = self.label_smoothing if targets.dim() == 1 else 0.0
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        return {
            "loss": F.cross_entropy(scores, targets, label_smoothing=smoothing),
            "accuracy": (scores.argmax(1) == labels).float().mean(),
        }


def fine_tune(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    batches_per_epoch: int,
    recipe: FineTuning | None = None,
    *,
    output: str | Path,
    **settings: Any,
) -> nn.Module:
    """Train a model in place, resuming from the newest checkpoint in `output` when there is one.

    Args:
        model: What a learngene has made, `timm.create_model(..., drop_path_rate=0.1, init="learngene-LeTs")` say.
        batch_at: Pure function from a batch index to normalised images (B, C, H, W) and labels.
        batches_per_epoch: Of one process that sees all images: images over `recipe.batch_size`.
        recipe: How; as published by default.
        output: Folder of the run.
        **settings: Further fields of `TrainingConfig`, such as `seed`, `mixed_precision` and `gradient_accumulation`.

    Returns:
        The trained model.

    Raises:
        TrainingConfigError: Settings that cannot be, or that differ from those of the run in `output`.
    """
    recipe = recipe or FineTuning()
    processes = PartialState(cpu=settings.get("cpu") or None).num_processes
    batches_per_step = processes * settings.get("gradient_accumulation", 1)
    steps_per_epoch = max(1, batches_per_epoch // batches_per_step)
    scale = recipe.batch_size * batches_per_step / RATE_IMAGES
    config = TrainingConfig(
        output=str(output),
        steps=recipe.epochs * steps_per_epoch,
        learning_rate=scale * recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_epochs * steps_per_epoch,
        gradient_clip=recipe.gradient_clip,
        **settings,
    )
    ends = Recipe(min_learning_rate=scale * recipe.min_learning_rate)
    trained = train(
        LabelTraining(model, recipe.label_smoothing),
        batch_at,
        config,
        optimizer=lambda module: adamw(module, config),
        schedule=lambda optimizer, known: warmup_cosine(optimizer, known, ends),
    )
    return cast(LabelTraining, trained).model
