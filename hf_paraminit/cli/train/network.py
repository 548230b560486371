"""Train one network, the baseline of predicted weights: of DeepNets-1M by its number, or any timm model.

It starts from its own random values, or with --init from predicted ones. Recipes: ppuda (SGD, the default), darts (its
search's winner: cutout, drop-path, auxiliary classifier; DeepNets-1M only), imagenet (SGD at 224 pixels), a3 (LAMB,
binary cross entropy, RandAugment, Mixup and CutMix; train at 160 pixels, test at 224). Every option overrides its part.
A run that was interrupted goes on from its newest checkpoint when the same command is given again. The result is
OUTPUT/model.safetensors, and OUTPUT/result.json with the accuracy on images that were not trained on: those of the
validation or test split, or training images that --hold-out keeps back.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from hf_paraminit.cli.arguments import Subparsers, count, json_object, positive, verb_parser
from hf_paraminit.cli.timm_models import build_model
from hf_paraminit.cli.train.options import add_loop_options, loop_settings
from hf_paraminit.deepnets.dataset import StoredNetworks
from hf_paraminit.deepnets.described import GeneratedNetworks
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.training.augmentation import AugmentedBatches
from hf_paraminit.training.classifier import (
    LOSSES,
    OPTIMIZERS,
    ClassifierTraining,
    DropPathSchedule,
    accuracy_on,
    new_optimizer,
)
from hf_paraminit.training.classifier_recipes import CLASSIFIER_RECIPES, ClassifierRecipe
from hf_paraminit.training.images import TrainingImages, open_images
from hf_paraminit.training.loop import TrainingConfig, train
from hf_paraminit.training.schedules import SCHEDULES, epoch_schedule

EXAMPLES = """
paraminit train network --split test --arch 0 --output runs/test0
paraminit train network --split test --arch 0 --deepnets data --data torch/cifar10@data --output runs/cifar0
paraminit train network --split search --arch 35133 --deepnets data --recipe darts --data torch/cifar10@data --output nas
paraminit train network --arch 0 --data torch/cifar10@data --hold-out 5000 --output runs/tuned0
paraminit train network resnet18 --data ./photos --img-size 224 --output runs/resnet18
paraminit train network resnet18 --init ghn3 --output runs/resnet18-ghn3
accelerate launch -m hf_paraminit train network resnet50 --recipe a3 --data ./imagenet --output runs/resnet50-a3
"""  # noqa: E501

IMAGENET_SIDE = 224  # pixels
# What decides the trained weights besides the recipe and the settings of the loop.
IDENTITY = ("model", "model_kwargs", "split", "arch", "deepnets", "init", "data")
HELD_OUT_OPTIONS = {
    "last": "hold_out",
    "last_of_each_class": "hold_out_per_class",
    "size": "test_img_size",
    "crop": "test_crop",
}


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "network", __doc__, examples=EXAMPLES)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="any name that timm.create_model takes")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--model-kwargs", type=json_object, default={}, metavar="JSON",
                        help="further arguments of timm.create_model")  # fmt: skip
    parser.add_argument("--split", default="test", help="split of DeepNets-1M (default: test)")
    parser.add_argument("--arch", type=count, metavar="N", help="number of a network in it, from 0")
    parser.add_argument("--deepnets", metavar="FILE",
                        help="HDF5 file (or its folder) of DeepNets-1M; by default it is drawn anew")  # fmt: skip
    parser.add_argument("--init", metavar="NAME", help="start from predicted weights (default: the network's own)")
    parser.add_argument("--recipe", choices=list(CLASSIFIER_RECIPES), default="ppuda",
                        help="where the other defaults come from (default: ppuda)")  # fmt: skip
    _add_image_options(parser)
    _add_learning_options(parser)
    add_loop_options(parser)
    parser.set_defaults(gradient_clip=None)  # the recipe says


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    images = parser.add_argument_group("images")
    images.add_argument("--data", default="synthetic", metavar="DATA",
                        help="synthetic (the default), a folder of images by class, or a timm data set "
                        "(torch/cifar10@FOLDER)")  # fmt: skip
    images.add_argument("--img-size", type=positive, metavar="N", help="side in pixels (default: 32)")
    images.add_argument("--test-img-size", type=positive, metavar="N", help="of test images (default: as --img-size)")
    images.add_argument("--test-crop", type=float, metavar="X", help="share of a resized test image that is taken")
    held_out = images.add_mutually_exclusive_group()
    held_out.add_argument("--hold-out", type=count, metavar="N",
                          help="test on the last N training images instead (CIFAR-10 as published: 5000)")  # fmt: skip
    held_out.add_argument("--hold-out-per-class", type=count, metavar="N",
                          help="test on the last N of each class instead (ImageNet as published: 50)")  # fmt: skip
    images.add_argument("--cutout", type=count, metavar="N", help="side of a square that is blacked out (default: 0)")
    images.add_argument("--rand-augment", metavar="SPEC", help="in timm's notation, as rand-m6 (default: none)")
    for option in ("--mixup", "--cutmix"):
        images.add_argument(option, type=float, metavar="X", help="its parameter (default: 0, none)")


def _add_learning_options(parser: argparse.ArgumentParser) -> None:
    learning = parser.add_argument_group("learning")
    learning.add_argument("--epochs", type=positive, metavar="N", help="passes over the data (default: 50)")
    learning.add_argument("--steps", type=positive, metavar="N", help="optimiser steps (default: as --epochs say)")
    learning.add_argument("--batch-size", type=positive, metavar="N", help="images per step and process (default: 96)")
    learning.add_argument("--optimizer", choices=OPTIMIZERS, help="sgd has momentum 0.9 (default: sgd)")
    learning.add_argument("--learning-rate", type=float, metavar="X", help="peak rate (default: 0.025)")
    learning.add_argument("--weight-decay", type=float, metavar="X", help="added to SGD's gradients (default: 3e-4)")
    learning.add_argument("--schedule", choices=SCHEDULES, help="of the rate (default: cosine)")
    learning.add_argument("--warmup-epochs", type=positive, metavar="N", help="of cosine-warmup (default: 5)")
    learning.add_argument("--start-rate", type=float, metavar="X", help="of cosine-warmup (default: 1e-5)")
    learning.add_argument("--milestones", type=positive, nargs="+", metavar="N",
                          help="epochs where mstep divides the rate by 10 (default: 2/3 and 5/6)")  # fmt: skip
    learning.add_argument("--loss", choices=LOSSES, help="binary: each class is there or not (default: cross-entropy)")
    learning.add_argument("--label-smoothing", type=float, metavar="X", help="of the targets (default: 0)")
    learning.add_argument("--drop-path", type=float, metavar="X",
                          help="rate that is reached at the end, from 0 (default: 0; DeepNets-1M only)")  # fmt: skip
    learning.add_argument("--auxiliary", action="store_true", default=None,
                          help="train a second classifier with weight 0.4 too (DeepNets-1M only)")  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    if (arguments.model is None) == (arguments.arch is None):
        raise TrainingConfigError("Name either a timm model or, with --arch, a network of DeepNets-1M.")
    recipe = _recipe(arguments)
    images = open_images(
        arguments.data,
        size=recipe.img_size,
        seed=arguments.seed,
        augmentation=recipe.augmentation,
        held_out=recipe.held_out,
    )
    torch.manual_seed(arguments.seed)
    network = _build(arguments, recipe, images.num_classes)
    if arguments.init is not None:
        initialize(network, arguments.init, seed=arguments.seed)
    trained = _train(arguments, recipe, images, network)
    if PartialState().is_main_process:
        _write(arguments, recipe, trained, accuracy_on(trained, images.test_batches(recipe.batch_size)))


def _recipe(arguments: argparse.Namespace) -> ClassifierRecipe:
    """The recipe that was named, with the options that were given."""
    named = CLASSIFIER_RECIPES[arguments.recipe]
    recipe = dataclasses.replace(
        _changed(named, arguments),
        augmentation=_changed(named.augmentation, arguments),
        held_out=_changed(named.held_out, arguments, HELD_OUT_OPTIONS),
    )
    if arguments.model is not None and (recipe.drop_path or recipe.auxiliary):
        raise TrainingConfigError(
            f"{arguments.model} has no second classifier, and timm sets its drop-path: pass --model-kwargs "
            "'{\"drop_path_rate\": 0.2}'. --auxiliary, --drop-path and --recipe darts are for networks of DeepNets-1M."
        )
    return recipe


def _changed(record: Any, arguments: argparse.Namespace, options: Mapping[str, str] | None = None) -> Any:
    """A data class with the fields changed that arguments have values for, of the same name or of that in `options`."""
    names = {field.name: field.name for field in dataclasses.fields(record)} | dict(options or {})
    given = {field: getattr(arguments, option, None) for field, option in names.items()}
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
    return dataclasses.replace(record, **{field: value for field, value in values.items() if value is not None})


def _train(
    arguments: argparse.Namespace, recipe: ClassifierRecipe, images: TrainingImages, network: nn.Module
) -> nn.Module:
    per_epoch = max(1, len(images) // (recipe.batch_size * PartialState(cpu=arguments.cpu).num_processes))
    steps = arguments.steps or recipe.epochs * per_epoch
    drop_path = (
        DropPathSchedule(network, recipe.drop_path, steps=steps, epochs=recipe.epochs) if recipe.drop_path else None
    )
    training = train(
        ClassifierTraining(network, label_smoothing=recipe.label_smoothing, loss=recipe.loss),
        AugmentedBatches(
            batch_at=lambda index: images.batch(index, recipe.batch_size),
            num_classes=images.num_classes,
            augmentation=recipe.augmentation,
            seed=arguments.seed,
        ),
        TrainingConfig(
            output=str(arguments.output),
            steps=steps,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            **loop_settings(arguments) | {"gradient_clip": recipe.gradient_clip},
        ),
        optimizer=new_optimizer(recipe.optimizer, recipe.learning_rate, recipe.weight_decay),
        schedule=epoch_schedule(
            recipe.schedule,
            recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            start_rate=recipe.start_rate,
            milestones=recipe.milestones,
        ),
        after_step=drop_path.after_step if drop_path else None,
        stateful=[drop_path] if drop_path else [],
        identity=_identity(arguments, recipe),
    )
    assert isinstance(training, ClassifierTraining)
    return training.network


def _identity(arguments: argparse.Namespace, recipe: ClassifierRecipe) -> dict[str, Any]:
    """What decides the trained weights and their accuracy besides the settings of the loop."""
    return {name: getattr(arguments, name) for name in IDENTITY} | dataclasses.asdict(recipe)


def _build(arguments: argparse.Namespace, recipe: ClassifierRecipe, num_classes: int) -> nn.Module:
    """Build the network that was named, with real tensors."""
    if arguments.model is not None:
        place = argparse.Namespace(
            model=arguments.model,
            model_kwargs=arguments.model_kwargs,
            num_classes=num_classes,
            in_chans=None,
            img_size=None,
        )
        network = build_model(place)
        network.expected_input_sz = (3, recipe.img_size, recipe.img_size)  # type: ignore[assignment]
        return network
    options: dict[str, Any] = {"num_classes": num_classes, "is_imagenet_input": recipe.img_size == IMAGENET_SIDE}
    source = (
        GeneratedNetworks(arguments.split, **options)
        if arguments.deepnets is None
        else StoredNetworks(arguments.deepnets, arguments.split, **options)
    )
    return DeepNetsNetwork(**source.arguments(arguments.arch) | {"auxiliary": recipe.auxiliary})


def _write(arguments: argparse.Namespace, recipe: ClassifierRecipe, network: nn.Module, accuracy: float) -> None:
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic_write(arguments.output / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    result = {"accuracy": accuracy, **_identity(arguments, recipe), "seed": arguments.seed}
    with atomic_write(arguments.output / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Accuracy {100 * accuracy:.1f} % on unseen images. Written to {arguments.output}.")
