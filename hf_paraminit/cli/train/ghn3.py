"""Train a graph hypernetwork: GHN-3, GHN-2, GHN-1, the MLP baseline or LoGAH.

By default it learns on random small timm networks and generated images, so that nothing is downloaded. A run that was
interrupted goes on from its newest checkpoint when the same command is given again. The result is OUTPUT/predictor:
config.json, model.safetensors in 16 bit, and a model card.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_paraminit.cli.arguments import Subparsers, positive, verb_parser
from hf_paraminit.cli.train.options import add_loop_options, loop_settings
from hf_paraminit.deepnets.dataset import StoredNetworks
from hf_paraminit.deepnets.described import GeneratedNetworks
from hf_paraminit.deepnets.families import FamilyNetworks, draw_pool
from hf_paraminit.deepnets.sources import ArchitectureSource, Mixture
from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.ghn.config import LOGAH_CONFIGS, GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.recipes import LARGE_IMAGES, SIZES, Recipe, published_recipe
from hf_paraminit.ghn.train import MetaBatches, MetaTraining, TargetNetwork, TargetNetworks
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.training.images import TrainingImages, open_images
from hf_paraminit.training.loop import TrainingConfig, train
from hf_paraminit.training.schedules import SCHEDULES, epoch_schedule

EXAMPLES = """
paraminit train ghn3 --output runs/ghn3
paraminit train ghn3 --output runs/try --steps 200
paraminit train ghn3 --output runs/ghn2 --model ghn2 --recipe published --architectures deepnets --data torch/cifar10@data
paraminit train ghn3 --output runs/logah --low-rank 32 --architectures deepnets=1 families=2
torchrun --nproc_per_node 2 -m hf_paraminit train ghn3 --output runs/ghn3
accelerate launch --multi_gpu --num_processes 8 -m hf_paraminit train ghn3 --output runs/xl --recipe published --size xl
"""  # noqa: E501

MODELS = ("ghn3", "ghn2", "ghn1", "ghn-mlp", "logah")
# Width of the predictor's classifier after training; a head with more classes repeats its rows.
NUM_CLASSES = 1000
FAMILY_SIDE = 32  # pixels
HEAD_DIM = 8  # width of one attention head, as in the published GHN-3-T
# What runs on this machine in hours; `--recipe published` takes what the papers say instead.
OURS = {"hidden_dim": 32, "num_layers": 3, "max_channels": 64, "max_side": 11}
OUR_RECIPE: dict[str, Any] = {"learning_rate": 2e-3, "schedule": None, "epochs": 1, "meta_batch": 1, "max_nodes": None,
                              "is_mixed": False}  # fmt: skip
OUR_STEPS, OUR_WARMUP = 24000, 200
# What the model card states of the command.
RECIPE = ("model", "recipe", "steps", "stop_after", "architectures", "networks", "max_parameters", "data", "img_size",
          "meta_batch", "batch_size", "learning_rate", "seed")  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "ghn3", __doc__, examples=EXAMPLES)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    _add_model_options(parser)
    _add_data_options(parser)
    learning = parser.add_argument_group("learning")
    learning.add_argument("--recipe", choices=("ours", "published"), default="ours", help="where defaults come from")
    learning.add_argument("--steps", type=positive, default=OUR_STEPS, metavar="N",
                          help=f"optimiser steps (default: {OUR_STEPS})")  # fmt: skip
    learning.add_argument("--optimizer", choices=("adam", "adamw"), help="default: as the recipe says")
    learning.add_argument("--learning-rate", type=float, metavar="X", help="peak rate (default: 2e-3, or the recipe's)")
    learning.add_argument("--weight-decay", type=float, metavar="X", help="default: as the recipe says")
    learning.add_argument("--schedule", choices=SCHEDULES, help="default: warm-up and cosine, or the recipe's")
    learning.add_argument("--epochs", type=positive, metavar="N", help="parts of the run that --schedule counts in")
    learning.add_argument("--norm-penalty", type=float, metavar="X", help="weight of the norms of predicted tensors")
    learning.add_argument("--label-smoothing", type=float, metavar="X", help="default: as the recipe says")
    learning.add_argument("--max-nodes", type=positive, metavar="N", help="most nodes of a step's graphs together")
    add_loop_options(parser, warmup_steps=OUR_WARMUP)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("predictor")
    model.add_argument("--model", choices=MODELS, default="ghn3", help="default: ghn3")
    model.add_argument("--size", choices=dict.fromkeys([*SIZES, *LOGAH_CONFIGS]), default="tiny",
                       help="of a published ghn3 or logah (default: tiny)")  # fmt: skip
    model.add_argument("--low-rank", type=positive, metavar="R", help="decode products of rank R, which need no tiling")
    for option, meaning in (
        ("hidden_dim", "width of the predictor, a multiple of 8"),
        ("num_layers", "layers of the predictor"),
        ("max_channels", "most channels of a decoded block"),
        ("max_side", "largest side of a decoded kernel"),
    ):
        model.add_argument(f"--{option.replace('_', '-')}", type=positive, metavar="N",
                           help=f"{meaning} (default: {OURS[option]}, or the recipe's)")  # fmt: skip


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("networks and images")
    data.add_argument("--architectures", nargs="+", default=["pool"], metavar="SOURCE[=WEIGHT]",
                      help="pool (a fixed pool of timm networks, the default), or a mixture of families (random timm "
                      "networks), deepnets (DeepNets-1M, drawn on the fly) and files of that (FILE.hdf5)")  # fmt: skip
    data.add_argument("--data", default="synthetic", metavar="DATA",
                      help="synthetic (the default), a folder of images by class, or a timm data set "
                      "(torch/cifar10@FOLDER)")  # fmt: skip
    for option, default, meaning in (
        ("--networks", 48, "networks in the pool"),
        ("--max-parameters", 1_200_000, "most parameters of a timm network"),
        ("--img-size", 32, "side of the images in pixels"),
    ):
        data.add_argument(option, type=positive, default=default, metavar="N", help=f"{meaning} (default: {default})")
    data.add_argument("--meta-batch", type=positive, metavar="N",
                      help="networks per step, of all processes (default: 1 each, or the recipe's)")  # fmt: skip
    data.add_argument("--batch-size", type=positive, metavar="N", help="images per step (default: 64, or the recipe's)")


def run(arguments: argparse.Namespace) -> None:
    images = open_images(arguments.data, size=arguments.img_size, seed=arguments.seed)
    shards = PartialState(cpu=arguments.cpu).num_processes * arguments.gradient_accumulation
    recipe = _recipe(arguments, images.num_classes, shards)
    config = TrainingConfig(
        output=str(arguments.output),
        steps=arguments.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        **loop_settings(arguments, mixed_precision="fp16" if recipe.is_mixed and _has_gpu(arguments) else "no"),
    )
    ghn = train(
        MetaTraining(
            GHN.new(recipe.model, seed=arguments.seed),
            norm_penalty=recipe.norm_penalty,
            label_smoothing=recipe.label_smoothing,
        ),
        _meta_batches(arguments, recipe, images, shards),
        config,
        optimizer=recipe.new_optimizer(),
        schedule=epoch_schedule(recipe.schedule, recipe.epochs) if recipe.schedule else None,
        identity=_identity(arguments, recipe),
    ).ghn
    assert isinstance(ghn, GHN)
    ghn = ghn.cpu()
    if arguments.data == "synthetic":  # generated classes are not a user's
        ghn = ghn.with_new_classifier(NUM_CLASSES, seed=arguments.seed)
    ghn.metadata = {
        "training": {name: _identity(arguments, recipe).get(name) or getattr(arguments, name) for name in RECIPE}
    }
    if PartialState().is_main_process:
        folder = arguments.output / "predictor"
        with atomic_folder(folder) as staging:
            ghn.half().save_pretrained(staging)
        print(f'Written to {folder}. Use with init="local-dir:{folder}".')


def _has_gpu(arguments: argparse.Namespace) -> bool:
    return torch.cuda.is_available() and not arguments.cpu


def _recipe(arguments: argparse.Namespace, num_classes: int, shards: int) -> Recipe:
    """The recipe that was asked for, with the options that were given."""
    recipe = published_recipe(arguments.model, size=arguments.size, image_size=arguments.img_size)
    if arguments.recipe == "ours":
        recipe = dataclasses.replace(recipe, **OUR_RECIPE)
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("model", "is_mixed")]
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if "meta_batch" not in given and recipe.meta_batch % shards:
        given["meta_batch"] = shards
    return dataclasses.replace(recipe, model=_architecture(arguments, recipe.model, num_classes), **given)


def _architecture(arguments: argparse.Namespace, published: GHNConfig, num_classes: int) -> GHNConfig:
    sizes = {"hidden_dim": published.hidden_dim, "num_layers": published.num_layers,
             "max_channels": published.max_shape[0], "max_side": published.max_shape[2]}  # fmt: skip
    if arguments.recipe == "ours":
        sizes = dict(OURS)
    sizes.update({name: value for name in OURS if (value := getattr(arguments, name)) is not None})
    channels, side, dim = sizes["max_channels"], sizes["max_side"], sizes["hidden_dim"]
    is_own_width = dim != published.hidden_dim
    return dataclasses.replace(
        published,
        hidden_dim=dim,
        num_layers=sizes["num_layers"],
        num_heads=max(1, dim // HEAD_DIM) if is_own_width else published.num_heads,
        max_shape=(channels, channels, side, side),
        low_rank=arguments.low_rank or (published.low_rank and (dim // 2 if is_own_width else published.low_rank)),
        num_classes=num_classes,
    )


def _identity(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """What decides the trained weights besides the settings of the loop."""
    names = ("architectures", "networks", "max_parameters", "data", "img_size")
    return (
        {name: getattr(arguments, name) for name in names}
        | dataclasses.asdict(recipe)
        | {"model": recipe.model.to_dict()}
    )


def _meta_batches(
    arguments: argparse.Namespace,
    recipe: Recipe,
    images: TrainingImages,
    shards: int,
) -> MetaBatches:
    """Join images and architectures, which know nothing of each other."""
    is_pool, classes = arguments.architectures == ["pool"], images.num_classes
    return MetaBatches(
        networks=_pool(arguments, classes) if is_pool else TargetNetworks(_mixture(arguments, classes)),
        images_at=lambda index: images.batch(index, recipe.batch_size),
        meta_batch=recipe.meta_batch,
        first=arguments.steps // 24 if is_pool else 0,
        joining=arguments.steps // 2 if is_pool else 0,
        seed=arguments.seed,
        shards=shards,
        max_nodes=recipe.max_nodes,
    )


def _require_family_images(arguments: argparse.Namespace) -> None:
    if arguments.img_size != FAMILY_SIDE:
        raise TrainingConfigError(
            f"--img-size {arguments.img_size}: random timm networks are drawn for images of {FAMILY_SIDE} pixels. "
            "Name only deepnets or FILE.hdf5 after --architectures, or leave --img-size away."
        )


def _pool(arguments: argparse.Namespace, num_classes: int) -> Sequence[TargetNetwork]:
    _require_family_images(arguments)
    pool = draw_pool(arguments.networks, num_classes, seed=arguments.seed, max_parameters=arguments.max_parameters)
    return [TargetNetwork.from_module(network) for network in pool]


def _mixture(arguments: argparse.Namespace, num_classes: int) -> Mixture:
    parts = []
    for text in arguments.architectures:
        name, _, weight = text.partition("=")
        try:
            parts.append((_source(name, arguments, num_classes), float(weight or 1)))
        except ValueError as error:
            raise TrainingConfigError(f"--architectures {text}: {error}; expected SOURCE or SOURCE=WEIGHT.") from error
    return Mixture(parts, seed=arguments.seed)


def _source(name: str, arguments: argparse.Namespace, num_classes: int) -> ArchitectureSource:
    if name == "families":
        _require_family_images(arguments)
        return FamilyNetworks(num_classes, seed=arguments.seed, max_parameters=arguments.max_parameters)
    is_imagenet = arguments.img_size > LARGE_IMAGES
    options = {
        "num_classes": num_classes,
        "is_imagenet_input": is_imagenet,
        "seed": arguments.seed,
        "wider": is_imagenet and arguments.model in ("ghn3", "logah"),
    }
    if name == "deepnets":
        return GeneratedNetworks("train", **options)
    if name.endswith((".hdf5", ".h5")):
        return StoredNetworks(name, "train", **options)
    raise TrainingConfigError(
        f"--architectures {name}: expected 'pool' alone, or some of 'families', 'deepnets' and FILE.hdf5."
    )
