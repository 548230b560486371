"""Options that the trainings of learngenes share, and what is made of them."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from accelerate import PartialState
from torch import nn

from hf_paraminit.cli.arguments import count, positive, seed
from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.lets.distillation import Distillation, Normalization
from hf_paraminit.lets.images import AugmentedBatches, ReadAhead
from hf_paraminit.lets.train import Batch, Recipe, load_teacher
from hf_paraminit.training.loop import TrainingConfig
from hf_paraminit.training.stored_images import open_timm_images
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

SYNTHETIC = "synthetic"
VALIDATION_BATCHES = 16
NO_CLIPPING = 1e12  # the loop wants a finite limit
PUBLISHED_WARMUP_EPOCHS, DEFAULT_WARMUP = 5, 100
# The recipe of the papers (their code's command line), and one for generated images.
PUBLISHED_RECIPE: dict[str, Any] = {
    "batch_size": 128, "learning_rate": 5e-4, "min_learning_rate": 1e-5, "warmup_learning_rate": 1e-6,
    "weight_decay": 0.05, "gradient_clip": math.inf,
}  # fmt: skip
SMALL_RECIPE: dict[str, Any] = {
    "batch_size": 32, "learning_rate": 1e-3, "min_learning_rate": 0.0, "warmup_learning_rate": 0.0,
    "weight_decay": 0.05, "gradient_clip": 1.0,
}  # fmt: skip
# What the model card states of a command, and of these what a resumed run may change.
RECORDED = (
    "data", "class_counts", "teacher", "distillation", "alpha", "tau", "loss_per", "steps", "stop_after", "batch_size",
    "learning_rate", "min_learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "gradient_accumulation",
    "mixed_precision", "ema_decay", "drop_path", "seed",
)  # fmt: skip
CHANGEABLE = ("stop_after",)


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Values of the options that a training does not name.

    Attributes:
        small: For generated images.
        published: Of the paper.
        steps: Optimiser steps on generated images.
        epochs: Passes over the images in the paper.
    """

    small: Mapping[str, Any]
    published: Mapping[str, Any]
    steps: int
    epochs: int

    def text(self, option: str) -> str:
        """Both values of an option, for its help."""
        name = option.removeprefix("--").replace("-", "_")
        return f"default: {self.small[name]}; published: {self.published[name]}"

    def fill_in(self, arguments: argparse.Namespace) -> None:
        """Give what was not asked for its value."""
        for name, value in (self.published if arguments.published else self.small).items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a training needs to know of its images.

    Attributes:
        batch_at: Batches by number.
        num_classes: Classes.
        batches_per_epoch: Per process, None where there is no end.
        validation: Held-out batches, where there are any.
    """

    batch_at: Callable[[int], Batch]
    num_classes: int
    batches_per_epoch: int | None = None
    validation: list[Batch] | None = None


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add where to write to, and which preset counts."""
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--published", action="store_true", help="sizes and recipe of the paper as defaults")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add what `open_data` reads."""
    parser.add_argument(
        "--data", default=SYNTHETIC, metavar="DATA",
        help="synthetic (default), a folder of classes, or a data set of timm as NAME or NAME@FOLDER",
    )  # fmt: skip
    parser.add_argument(
        "--class-counts", type=_class_counts, default=(8, 4, 4, 4), metavar="A,B,C,D",
        help="generated classes: fractals, contours, shapes, textures (default: 8,4,4,4)",
    )  # fmt: skip
    parser.add_argument("--num-classes", type=positive, metavar="N", help="where the data set does not say")
    parser.add_argument("--download", action="store_true", help="let the host download the data set")
    parser.add_argument("--workers", type=count, default=0, metavar="N", help="processes that read images (default: 0)")


def add_size_options(parser: argparse.ArgumentParser, presets: Presets, meanings: Mapping[str, str]) -> None:
    """Add options that hold whole numbers, by name and meaning."""
    for option, meaning in meanings.items():
        parser.add_argument(option, type=positive, metavar="N", help=f"{meaning} ({presets.text(option)})")


def add_recipe_options(parser: argparse.ArgumentParser, presets: Presets) -> None:
    """Add loss, length and rates."""
    parser.add_argument("--teacher", metavar="NAME", help="model of timm with the same classes; none: labels only")
    parser.add_argument("--teacher-checkpoint", metavar="FILE", help="its weights; none: timm downloads them")
    parser.add_argument("--distillation", choices=("soft", "hard"), default="soft", help="(default: soft)")
    parser.add_argument("--alpha", type=float, default=1.0, metavar="X", help="share of the teacher (default: 1)")
    parser.add_argument("--tau", type=float, default=1.0, metavar="X", help="temperature (default: 1)")
    parser.add_argument(
        "--loss-per", choices=get_args(Normalization), default="elements",
        help="divide the soft loss by images times classes, as published, or by images (default: elements)",
    )  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, metavar="N", help=f"optimiser steps (default: {presets.steps})")
    length.add_argument("--epochs", type=positive, metavar="N", help=f"instead (published: {presets.epochs})")
    parser.add_argument("--stop-after", type=positive, metavar="N", help="stop at this step of the schedule")
    parser.add_argument("--warmup-steps", type=count, metavar="N", help="(default: 100; published: 5 epochs)")
    text = presets.text("--batch-size")
    parser.add_argument("--batch-size", type=positive, metavar="N", help=f"per process ({text})")
    for option in ("--learning-rate", "--min-learning-rate", "--warmup-learning-rate", "--weight-decay",
                   "--gradient-clip", "--drop-path"):  # fmt: skip
        parser.add_argument(option, type=float, metavar="X", help=f"({presets.text(option)})")
    parser.add_argument("--ema-decay", type=float, metavar="X", help="keep a moving average, and save that")
    parser.add_argument("--gradient-accumulation", type=positive, default=1, metavar="N", help="batches per step")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="(default: no)")
    parser.add_argument("--checkpoint-every", type=positive, default=500, metavar="N", help="steps (default: 500)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights and images (default: 0)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")


def open_data(arguments: argparse.Namespace) -> Data:
    """Open the images, nothing of which is read yet.

    Raises:
        TrainingConfigError: There are no such data, or their classes are not known.
    """
    if arguments.data == SYNTHETIC:
        return _generated(arguments)
    name, _, root = arguments.data.partition("@")
    if Path(arguments.data).is_dir():
        name, root = "", arguments.data
    pictures, names = open_timm_images(name, "train", root=root or None, download=arguments.download)
    num_classes = arguments.num_classes or len(names)
    if not num_classes:
        raise TrainingConfigError(f"{arguments.data} does not say how many classes it has; add --num-classes N.")
    batches = AugmentedBatches(
        pictures,
        batch_size=arguments.batch_size,
        image_shape=(3, arguments.img_size, arguments.img_size),
        num_classes=num_classes,
        seed=arguments.seed,
    )
    return Data(
        batch_at=ReadAhead(batches, arguments.workers) if arguments.workers else batches,
        num_classes=num_classes,
        batches_per_epoch=batches.batches_per_epoch,
    )


def _generated(arguments: argparse.Namespace) -> Data:
    images = SyntheticImages(SyntheticSpec(seed=arguments.seed, size=arguments.img_size, preset=arguments.class_counts))

    def batch_at(index: int) -> Batch:
        pixels, labels = images.batch("train", index, arguments.batch_size)
        return normalize(pixels), labels

    def validation() -> Iterator[Batch]:
        for index in range(VALIDATION_BATCHES):
            pixels, labels = images.batch("validation", index, arguments.batch_size)
            yield normalize(pixels), labels

    return Data(batch_at=batch_at, num_classes=images.num_classes, validation=list(validation()))


def fill_in_length(arguments: argparse.Namespace, data: Data, presets: Presets) -> None:
    """Turn epochs into steps.

    Raises:
        TrainingConfigError: Generated images have no epochs.
    """
    epochs = arguments.epochs or (presets.epochs if arguments.published and not arguments.steps else None)
    if epochs is not None and data.batches_per_epoch is None:
        if arguments.epochs:
            raise TrainingConfigError("Generated images have no epochs; say how long to train with --steps.")
        epochs = None
    batches_per_step = arguments.gradient_accumulation * PartialState(cpu=arguments.cpu or None).num_processes
    per_epoch = max(1, (data.batches_per_epoch or 0) // batches_per_step)
    arguments.steps = arguments.steps or (epochs * per_epoch if epochs is not None else presets.steps)
    if arguments.warmup_steps is None:
        is_published = arguments.published and data.batches_per_epoch is not None
        arguments.warmup_steps = PUBLISHED_WARMUP_EPOCHS * per_epoch if is_published else DEFAULT_WARMUP


def distillation_of(arguments: argparse.Namespace) -> Distillation:
    """The loss."""
    if arguments.teacher is None:
        return Distillation(kind="none")
    return Distillation(
        kind=arguments.distillation, alpha=arguments.alpha, tau=arguments.tau, normalization=arguments.loss_per
    )


def teacher_of(arguments: argparse.Namespace, num_classes: int) -> nn.Module | None:
    """The teacher, if one was named.

    Raises:
        TrainingConfigError: None was named, though the settings need one.
    """
    if arguments.teacher is None:
        if arguments.published or arguments.teacher_checkpoint:
            raise TrainingConfigError(
                "Learngenes as published learn from a teacher: add --teacher NAME, such as levit_384."
            )
        return None
    return load_teacher(arguments.teacher, num_classes, checkpoint=arguments.teacher_checkpoint)


def settings_of(arguments: argparse.Namespace) -> tuple[TrainingConfig, Recipe]:
    """What the loop and the schedule take."""
    settings = TrainingConfig(
        output=str(arguments.output),
        steps=arguments.steps,
        stop_after=arguments.stop_after,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        warmup_steps=arguments.warmup_steps,
        gradient_clip=min(arguments.gradient_clip, NO_CLIPPING),
        gradient_accumulation=arguments.gradient_accumulation,
        mixed_precision=arguments.mixed_precision,
        checkpoint_every=arguments.checkpoint_every,
        seed=arguments.seed,
        cpu=arguments.cpu,
    )
    recipe = Recipe(
        min_learning_rate=arguments.min_learning_rate,
        warmup_learning_rate=arguments.warmup_learning_rate,
        ema_decay=arguments.ema_decay,
    )
    return settings, recipe


def identity_of(arguments: argparse.Namespace, architecture: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """What a resumed run must not change beside the settings of the loop, as JSON values."""
    values = {name: getattr(arguments, name) for name in (*RECORDED, *more) if name not in CHANGEABLE}
    values["class_counts"] = list(values["class_counts"])
    values["gradient_clip"] = min(arguments.gradient_clip, NO_CLIPPING)
    return {**values, "architecture": dict(architecture)}


def _class_counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not four whole numbers between commas")
    return tuple(map(int, parts))
