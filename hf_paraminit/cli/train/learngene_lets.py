"""Train a learngene with its transformations (LeTs, stage 1); on generated images unless you name others.

Weights of a large Aux-Net are made from the learngene in every step; a teacher or the labels tell it what to do. A run
that was interrupted goes on from its newest checkpoint when the same command is given again. The result is
OUTPUT/predictor: config.json, model.safetensors in 16 bit, and a model card. With --stop-after 1050 the defaults made
the built-in learngene; with --published the sizes, the loss and the recipe are those of the paper. Rates are per step
and not scaled by the batch: the published 5e-4 is for 512 images per step over all processes.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from accelerate import PartialState
from torch import nn

from hf_paraminit.cli.arguments import Subparsers, count, positive, seed, verb_parser
from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.lets.config import DepthScheme, GeneScheme, LeTsConfig, WidthScheme, adjacent_pairs
from hf_paraminit.lets.distillation import Distillation, Normalization
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.images import AugmentedBatches, ReadAhead
from hf_paraminit.lets.train import AuxTraining, Batch, Recipe, aux_accuracy, load_teacher, train_learngene
from hf_paraminit.training.loop import TrainingConfig
from hf_paraminit.training.stored_images import open_timm_images
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

EXAMPLES = """
paraminit train learngene-LeTs --output runs/lets
paraminit train learngene-LeTs --output runs/try --steps 200
paraminit train learngene-LeTs --output runs/cifar --data torch/cifar10@./data --img-size 32 --patch-size 4 --epochs 50
torchrun --nproc_per_node 4 -m hf_paraminit train learngene-LeTs --published --data DATA --teacher levit_384 --output l
"""

SYNTHETIC = "synthetic"
VALIDATION_BATCHES = 16
# Sizes and recipe of the built-in learngene, and those of the paper (its code's command line).
BUILTIN: dict[str, Any] = {
    "embed_dim": 64, "num_heads": 1, "depth": 4, "aux_dim": 192, "num_blocks": 4, "repeat": 2,
    "patch_size": 8, "img_size": 32, "class_token": True,
    "gene_init": "scaled", "width_init": "rand", "depth_init": "stackbert_noisy",
    "batch_size": 32, "learning_rate": 1e-3, "min_learning_rate": 0.0, "warmup_learning_rate": 0.0,
    "weight_decay": 0.05, "gradient_clip": 1.0, "drop_path": 0.0,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "embed_dim": 384, "num_heads": 6, "depth": 8, "aux_dim": 768, "num_blocks": 8, "repeat": 2,
    "patch_size": 16, "img_size": 224, "class_token": False,
    "gene_init": "published", "width_init": "rand", "depth_init": "stackbert_noisy",
    "batch_size": 128, "learning_rate": 5e-4, "min_learning_rate": 1e-5, "warmup_learning_rate": 1e-6,
    "weight_decay": 0.05, "gradient_clip": math.inf, "drop_path": 0.1,
}  # fmt: skip
DEFAULT_STEPS, PUBLISHED_EPOCHS, PUBLISHED_WARMUP_EPOCHS, DEFAULT_WARMUP = 1600, 300, 5, 100
NO_CLIPPING = 1e12  # the loop wants a finite limit
# What the model card states of the command.
RECIPE = (
    "data", "class_counts", "teacher", "distillation", "alpha", "tau", "loss_per", "steps", "stop_after", "batch_size",
    "learning_rate", "min_learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "gradient_accumulation",
    "mixed_precision", "ema_decay", "drop_path", "seed",
)  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "learngene-LeTs", __doc__, examples=EXAMPLES)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--published", action="store_true", help="sizes and recipe of the paper as defaults")
    _add_data(parser)
    _add_sizes(parser)
    _add_recipe(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
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


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    numbers = (
        ("--embed-dim", "width of the learngene"),
        ("--num-heads", "its attention heads"),
        ("--depth", "its layers, an even number"),
        ("--aux-dim", "width of the Aux-Net, the largest that can be made"),
        ("--num-blocks", "depth blocks"),
        ("--repeat", "layers of the Aux-Net per depth block"),
        ("--patch-size", "side of a patch in pixels"),
        ("--img-size", "side of an image in pixels"),
    )
    for option, meaning in numbers:
        parser.add_argument(option, type=positive, metavar="N", help=f"{meaning} ({_defaults(option)})")
    parser.add_argument(
        "--class-token", action=argparse.BooleanOptionalAction, help=f"classify a token ({_defaults('--class-token')})"
    )
    for option, scheme in (("--gene-init", GeneScheme), ("--width-init", WidthScheme), ("--depth-init", DepthScheme)):
        parser.add_argument(option, choices=get_args(scheme), help=f"how it starts ({_defaults(option)})")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
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
    length.add_argument("--steps", type=positive, metavar="N", help=f"optimiser steps (default: {DEFAULT_STEPS})")
    length.add_argument("--epochs", type=positive, metavar="N", help=f"instead (published: {PUBLISHED_EPOCHS})")
    parser.add_argument("--stop-after", type=positive, metavar="N", help="stop at this step of the schedule")
    parser.add_argument("--warmup-steps", type=count, metavar="N", help="(default: 100; published: 5 epochs)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help=f"per process ({_defaults('--batch-size')})")
    for option in ("--learning-rate", "--min-learning-rate", "--warmup-learning-rate", "--weight-decay",
                   "--gradient-clip", "--drop-path"):  # fmt: skip
        parser.add_argument(option, type=float, metavar="X", help=f"({_defaults(option)})")
    parser.add_argument("--ema-decay", type=float, metavar="X", help="keep a moving average, and save that")
    parser.add_argument("--gradient-accumulation", type=positive, default=1, metavar="N", help="batches per step")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="(default: no)")
    parser.add_argument("--checkpoint-every", type=positive, default=500, metavar="N", help="steps (default: 500)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights and images (default: 0)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")


def run(arguments: argparse.Namespace) -> None:
    _fill_in(arguments)
    data = _open_data(arguments)
    _fill_in_length(arguments, data)
    config = _architecture(arguments, data.num_classes)
    objective = AuxTraining(
        LeTsGenerator.new(config, seed=arguments.seed),
        distillation=_distillation(arguments),
        teacher=_teacher(arguments, data.num_classes),
        drop_path_rate=arguments.drop_path,
    )
    settings, recipe = _settings(arguments)
    generator = train_learngene(objective, data.batch_at, settings, recipe).cpu()
    if not PartialState().is_main_process:
        return
    generator.metadata = {
        "training": {name: getattr(arguments, name) for name in RECIPE},
        "metrics": {"aux_accuracy": round(aux_accuracy(generator, data.validation), 2)} if data.validation else {},
    }
    folder = arguments.output / "predictor"
    with atomic_folder(folder) as staging:
        generator.half().save_pretrained(staging)
    for name, value in generator.metadata["metrics"].items():
        print(f"{name} on validation images: {value} %")
    print(f'Written to {folder}. Use with init="local-dir:{folder}".')


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What the training needs to know of its images.

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


def _open_data(arguments: argparse.Namespace) -> _Data:
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
    return _Data(
        batch_at=ReadAhead(batches, arguments.workers) if arguments.workers else batches,
        num_classes=num_classes,
        batches_per_epoch=batches.batches_per_epoch,
    )


def _generated(arguments: argparse.Namespace) -> _Data:
    images = SyntheticImages(SyntheticSpec(seed=arguments.seed, size=arguments.img_size, preset=arguments.class_counts))

    def batch_at(index: int) -> Batch:
        pixels, labels = images.batch("train", index, arguments.batch_size)
        return normalize(pixels), labels

    def validation() -> Iterator[Batch]:
        for index in range(VALIDATION_BATCHES):
            pixels, labels = images.batch("validation", index, arguments.batch_size)
            yield normalize(pixels), labels

    return _Data(batch_at=batch_at, num_classes=images.num_classes, validation=list(validation()))


def _fill_in(arguments: argparse.Namespace) -> None:
    """What was not asked for is as in the built-in or in the paper."""
    preset = PUBLISHED if arguments.published else BUILTIN
    for name, value in preset.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def _fill_in_length(arguments: argparse.Namespace, data: _Data) -> None:
    epochs = arguments.epochs or (PUBLISHED_EPOCHS if arguments.published and not arguments.steps else None)
    if epochs is not None and data.batches_per_epoch is None:
        if arguments.epochs:
            raise TrainingConfigError("Generated images have no epochs; say how long to train with --steps.")
        epochs = None
    batches_per_step = arguments.gradient_accumulation * PartialState(cpu=arguments.cpu or None).num_processes
    per_epoch = max(1, (data.batches_per_epoch or 0) // batches_per_step)
    arguments.steps = arguments.steps or (epochs * per_epoch if epochs is not None else DEFAULT_STEPS)
    if arguments.warmup_steps is None:
        is_published = arguments.published and data.batches_per_epoch is not None
        arguments.warmup_steps = PUBLISHED_WARMUP_EPOCHS * per_epoch if is_published else DEFAULT_WARMUP


def _architecture(arguments: argparse.Namespace, num_classes: int) -> LeTsConfig:
    names = (
        "embed_dim", "num_heads", "depth", "aux_dim", "repeat", "patch_size", "img_size", "class_token", "gene_init",
        "width_init", "depth_init",
    )  # fmt: skip
    return LeTsConfig(
        **{name: getattr(arguments, name) for name in names},
        pairs=adjacent_pairs(arguments.depth, arguments.num_blocks),
        num_classes=num_classes,
    )


def _distillation(arguments: argparse.Namespace) -> Distillation:
    if arguments.teacher is None:
        return Distillation(kind="none")
    return Distillation(
        kind=arguments.distillation, alpha=arguments.alpha, tau=arguments.tau, normalization=arguments.loss_per
    )


def _teacher(arguments: argparse.Namespace, num_classes: int) -> nn.Module | None:
    if arguments.teacher is None:
        if arguments.published or arguments.teacher_checkpoint:
            raise TrainingConfigError("LeTs as published learns from a teacher: add --teacher NAME, such as levit_384.")
        return None
    return load_teacher(arguments.teacher, num_classes, checkpoint=arguments.teacher_checkpoint)


def _settings(arguments: argparse.Namespace) -> tuple[TrainingConfig, Recipe]:
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


def _class_counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not four whole numbers between commas")
    return tuple(map(int, parts))


def _defaults(option: str) -> str:
    name = option.removeprefix("--").replace("-", "_")
    return f"default: {BUILTIN[name]}; published: {PUBLISHED[name]}"
