"""Stage 1: train a learngene with its transformations through the auxiliary net that they make; LeTs and TLEG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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
from hf_paraminit.lets.aux_net import AuxNet, TLEGAuxNet
from hf_paraminit.lets.distillation import Distillation
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.tleg import TLEG
from hf_paraminit.training.loop import TrainingConfig, train

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W); labels (B,) int64, or their shares (B, K) where images are mixed

LABELS_ONLY = Distillation(kind="none")
# Beside biases, norms and the depth transform: positions and tokens, as the learngene, timm and Transformers call them.
UNDECAYED = (
    "pos_embed", "cls_token", "dist_token", "reg_token", "position_embeddings", "distillation_token",
)  # fmt: skip


class DistilledTraining(nn.Module):
    """The objective of a learngene's training. Its parameters are the learngene's; the teacher is no part of it.

    Args:
        aux_net: From images to scores; its attribute `generator` is what is trained.
        image_shape: (C, H, W).
        num_classes: Scores per image.
        distillation: The loss.
        teacher: Classifier with as many classes, frozen; it sees the same images. None where nothing is distilled.
        label_smoothing: Of the base loss, where labels are class numbers.

    Raises:
        TrainingConfigError: A teacher is missing, or has other classes.
    """

    def __init__(
        self,
        aux_net: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        distillation: Distillation = LABELS_ONLY,
        teacher: nn.Module | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if (teacher is None) != (distillation.kind == "none"):
            raise TrainingConfigError(
                f"Training of a learngene: distillation {distillation.kind!r} "
                f"{'needs a' if teacher is None else 'has no'} teacher. Name a teacher together with 'soft' or 'hard', "
                "or neither."
            )
        self.aux_net = aux_net
        self.distillation = distillation
        self.label_smoothing = label_smoothing
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)  # past nn.Module
        if teacher is not None:
            _require_same_classes(teacher, image_shape, num_classes)

    @property
    def generator(self) -> nn.Module:
        """What is trained."""
        return cast(nn.Module, self.aux_net.generator)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, `cross_entropy` on the labels, and `accuracy` on the most likely of them, as a share."""
        device = next(self.parameters()).device
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


class AuxTraining(DistilledTraining):
    """The objective of stage 1 of LeTs.

    Args:
        generator: What is trained.
        distillation: The loss.
        teacher: As for `DistilledTraining`.
        drop_path_rate: Stochastic depth of the Aux-Net.
        samples_sizes: Train Des-Nets of random sizes instead of the Aux-Net alone, see `AuxNet`.
        label_smoothing: As for `DistilledTraining`.

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
        samples_sizes: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        config = generator.config
        super().__init__(
            AuxNet(generator, drop_path_rate=drop_path_rate, samples_sizes=samples_sizes),
            image_shape=(config.in_chans, *config.img_size),
            num_classes=config.num_classes,
            distillation=distillation,
            teacher=teacher,
            label_smoothing=label_smoothing,
        )
        self.samples_sizes = samples_sizes

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().forward(batch)
        if self.samples_sizes:
            # A small net uses some parameters only; data-parallel training wants a gradient, if zero, of each.
            metrics["loss"] = metrics["loss"] + 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        return metrics


class TLEGTraining(DistilledTraining):
    """The objective of TLEG, whose auxiliary net has the width of all nets that are made from the learngene.

    Args:
        learngene: What is trained.
        depth: Layers of the auxiliary net, 12 as published.
        distillation: The loss.
        teacher: As for `DistilledTraining`.
        drop_path_rate: Stochastic depth; published without.

    Raises:
        TrainingConfigError: A teacher is missing, or has other classes.
    """

    def __init__(
        self,
        learngene: TLEG,
        *,
        depth: int = 12,
        distillation: Distillation = LABELS_ONLY,
        teacher: nn.Module | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        config = learngene.config
        super().__init__(
            TLEGAuxNet(learngene, depth=depth, drop_path_rate=drop_path_rate),
            image_shape=(config.in_chans, config.img_size, config.img_size),
            num_classes=config.num_classes,
            distillation=distillation,
            teacher=teacher,
        )


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
    objective: DistilledTraining,
    batch_at: Callable[[int], Batch],
    config: TrainingConfig,
    recipe: Recipe | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
) -> Any:
    """Run stage 1 in place, resuming from the newest checkpoint in `config.output` when there is one.

    Args:
        objective: What is minimised.
        batch_at: Pure function from a batch index to normalised images and labels.
        config: Length, rates and output folder.
        recipe: Further settings; the schedule goes to zero and nothing is averaged by default.
        identity: What else decides the result, as JSON values; a run that began with others is not continued.

    Returns:
        The trained generator of the objective, or the moving average of it where the recipe asks for one.
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
        identity=identity,
    )
    generator = cast(DistilledTraining, trained).generator
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

    def __init__(self, generator: nn.Module, decay: float) -> None:
        self._average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def generator(self) -> nn.Module:
        """The averaged generator."""
        return self._average.module

    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after an update; the first ones start the average."""
        generator = cast(DistilledTraining, module).generator
        self._average.to(next(generator.parameters()).device)
        self._average.update_parameters(generator)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)


def aux_accuracy(generator: LeTsGenerator, batches: Iterable[Batch]) -> float:
    """Accuracy of the Aux-Net in percent.

    Args:
        generator: What makes it.
        batches: Images and class numbers.
    """
    return label_accuracy(AuxNet(generator), batches)


@torch.no_grad()
def label_accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Accuracy of a classifier in percent, in eval mode, on images and class numbers."""
    model.eval()
    device = next(model.parameters()).device
    hits = [class_scores(model, images.to(device)).argmax(1).cpu() == labels for images, labels in batches]
    return 100 * torch.cat(hits).float().mean().item()


def class_scores(model: nn.Module, images: Tensor) -> Tensor:
    """(B, K) of a model of timm or Transformers."""
    found = model(images)
    return cast(Tensor, getattr(found, "logits", found))


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
        raise TrainingConfigError(
            f"Training of a learngene: timm has no model {name!r} to be the teacher; see timm.list_models."
        )
    if checkpoint is None:
        return timm.create_model(name, pretrained=True, in_chans=in_chans)
    teacher = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
    is_safetensors = checkpoint.endswith(".safetensors")
    tensors = load_tensors(Path(checkpoint)) if is_safetensors else read_checkpoint(checkpoint).state_dict
    try:
        teacher.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"Training of a learngene: {checkpoint} does not fit the teacher {name} with {num_classes} classes: {error}"
        ) from error
    return teacher


def _require_same_classes(teacher: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """One image through the teacher, before anything is trained or written."""
    sample = torch.zeros(1, *image_shape)
    try:
        with torch.no_grad():
            scores = teacher(sample)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TrainingConfigError(
            f"Training of a learngene: the teacher does not take images of {' x '.join(map(str, image_shape))}: {error}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (1, num_classes):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TrainingConfigError(
            f"Training of a learngene: the teacher gives {found} for one image, expected (1, {num_classes}): the data "
            "have that many classes. Take a teacher that was trained on the same classes."
        )
