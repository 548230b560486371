"""Stage 1: train a learngene with its transformations through the Aux-Net that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hf_paraminit.errors import CheckpointError, TrainingConfigError
from hf_paraminit.io.safe_load import read_checkpoint
from hf_paraminit.io.safetensors_file import load_tensors
from hf_paraminit.lets.aux_net import AuxNet
from hf_paraminit.lets.distillation import Distillation
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.training.loop import TrainingConfig, train

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W); labels (B,) int64, or their shares (B, K) where images are mixed

LABELS_ONLY = Distillation(kind="none")
UNDECAYED = ("pos_embed", "cls_token")  # beside biases, norms and the depth transform


class AuxTraining(nn.Module):
    """The objective of stage 1. Its parameters are the generator's; the teacher is no part of it.

    Args:
        generator: What is trained.
        distillation: The loss.
        teacher: Classifier with as many classes, frozen; it sees the same images. None where nothing is distilled.
        drop_path_rate: Stochastic depth of the Aux-Net.
        label_smoothing: Of the base loss, where labels are class numbers.

    Raises:
        TrainingConfigError: A teacher is missing, or has other classes.
    """

    def __init__(
        self,
        generator: LeTsGenerator,
        *,
        distillation: Distillation = LABELS_ONLY,
        teacher: nn.Module | None = None,
        drop_path_rate: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if (teacher is None) != (distillation.kind == "none"):
            raise TrainingConfigError(
                f"LeTs training: distillation {distillation.kind!r} {'needs a' if teacher is None else 'has no'} "
                "teacher. Name a teacher together with 'soft' or 'hard', or neither."
            )
        self.aux_net = AuxNet(generator, drop_path_rate=drop_path_rate)
        self.distillation = distillation
        self.label_smoothing = label_smoothing
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)  # past nn.Module
        if teacher is not None:
            _require_same_classes(teacher, generator)

    @property
    def generator(self) -> LeTsGenerator:
        """What is trained."""
        return self.aux_net.generator

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, `cross_entropy` on the labels, and `accuracy` on the most likely of them, as a share."""
        device = self.generator.device
        images, targets = batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
        logits = self.aux_net(images).float()
        base = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing if targets.dim() == 1 else 0.0)
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        return {
            "loss": self.distillation.loss(logits, base, self._taught(images)),
            "cross_entropy": base.detach(),
            "accuracy": (logits.argmax(1) == labels).float().mean(),
        }

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor | None:
        return cast(Tensor, self._teacher[0].to(images.device)(images)).float() if self._teacher else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What decides the updates, beside `TrainingConfig`.

    Attributes:
        min_learning_rate: Where the cosine ends.
        warmup_learning_rate: Where the linear warm-up starts.
        ema_decay: Of the moving average of the weights; None for none. Published: 0.99996.
    """

    min_learning_rate: float = 0.0
    warmup_learning_rate: float = 0.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.min_learning_rate < 0 or self.warmup_learning_rate < 0:
            raise TrainingConfigError(f"LeTs training: learning rates must not be negative, found {self}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise TrainingConfigError(f"LeTs training: ema_decay={self.ema_decay}; expected a number between 0 and 1.")


def train_learngene(
    objective: AuxTraining, batch_at: Callable[[int], Batch], config: TrainingConfig, recipe: Recipe | None = None
) -> LeTsGenerator:
    """Run stage 1 in place, resuming from the newest checkpoint in `config.output` when there is one.

    Args:
        objective: What is minimised.
        batch_at: Pure function from a batch index to normalised images and labels.
        config: Length, rates and output folder.
        recipe: Further settings; the schedule goes to zero and nothing is averaged by default.

    Returns:
        The trained generator, or the moving average of it where the recipe asks for one.
    """
    recipe = recipe or Recipe()
    average = None if recipe.ema_decay is None else WeightAverage(objective.generator, recipe.ema_decay)
    trained = train(
        objective,
        batch_at,
        config,
        optimizer=lambda module: adamw(module, config),
        schedule=lambda optimizer, settings: warmup_cosine(optimizer, settings, recipe),
        after_step=None if average is None else average.update,
        stateful=() if average is None else (average,),
    )
    generator = cast(AuxTraining, trained).generator
    return generator if average is None else average.generator


def adamw(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves out vectors (so the depth transform too), positions and the class token."""
    named = list(module.named_parameters())
    decayed = [p for name, p in named if p.dim() > 1 and name.rpartition(".")[2] not in UNDECAYED]
    decayed_ids = set(map(id, decayed))
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if id(p) not in decayed_ids], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def warmup_cosine(optimizer: torch.optim.Optimizer, config: TrainingConfig, recipe: Recipe) -> LRScheduler:
    """Linear warm-up from `warmup_learning_rate`, then a cosine down to `min_learning_rate`, stepped per update."""
    peak = max(config.learning_rate, torch.finfo(torch.float32).tiny)
    warmup = min(config.warmup_steps, config.steps // 2)
    low, first = recipe.min_learning_rate / peak, recipe.warmup_learning_rate / peak

    def factor(step: int) -> float:
        if step < warmup:
            return first + (1 - first) * (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, config.steps - warmup))
        return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


class WeightAverage:
    """Exponential moving average of a generator: of learngene and transformations alike, so that they fit together."""

    def __init__(self, generator: LeTsGenerator, decay: float) -> None:
        self._average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def generator(self) -> LeTsGenerator:
        """The averaged generator."""
        return cast(LeTsGenerator, self._average.module)

    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after an update; the first ones start the average."""
        generator = cast(AuxTraining, module).generator
        self._average.to(generator.device)
        self._average.update_parameters(generator)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)


@torch.no_grad()
def aux_accuracy(generator: LeTsGenerator, batches: Iterable[Batch]) -> float:
    """Accuracy of the Aux-Net in percent.

    Args:
        generator: What makes it.
        batches: Images and class numbers.
    """
    net = AuxNet(generator).eval()
    hits = [(net(images.to(generator.device)).argmax(1).cpu() == labels).float() for images, labels in batches]
    return 100 * torch.cat(hits).mean().item()


def load_teacher(name: str, num_classes: int, *, checkpoint: str | None = None, in_chans: int = 3) -> nn.Module:
    """Build a teacher of timm.

    Args:
        name: What `timm.create_model` takes.
        num_classes: Classes of the data.
        checkpoint: File of its weights, as DeiT's code saves them (read without running anything in it), safetensors,
            or as timm does; None downloads timm's.
        in_chans: Channels of the images.

    Raises:
        TrainingConfigError: timm has no such model.
        CheckpointError: The file does not fit the model with these classes.
    """
    if not timm.is_model(name.partition(".")[0]):
        raise TrainingConfigError(f"LeTs training: timm has no model {name!r} to be the teacher; see timm.list_models.")
    if checkpoint is None:
        return timm.create_model(name, pretrained=True, in_chans=in_chans)
    teacher = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
    is_safetensors = checkpoint.endswith(".safetensors")
    tensors = load_tensors(Path(checkpoint)) if is_safetensors else read_checkpoint(checkpoint).state_dict
    try:
        teacher.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"LeTs training: {checkpoint} does not fit the teacher {name} with {num_classes} classes: {error}"
        ) from error
    return teacher


def _require_same_classes(teacher: nn.Module, generator: LeTsGenerator) -> None:
    """One image through the teacher, before anything is trained or written."""
    config = generator.config
    sample = torch.zeros(1, config.in_chans, *config.img_size)
    try:
        with torch.no_grad():
            scores = teacher(sample)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TrainingConfigError(
            f"LeTs training: the teacher does not take images of {config.in_chans} x {config.img_size}: {error}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (1, config.num_classes):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TrainingConfigError(
            f"LeTs training: the teacher gives {found} for one image, expected (1, {config.num_classes}): the data "
            "have that many classes. Take a teacher that was trained on the same classes."
        )
