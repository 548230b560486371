"""Train a learngene with its transformations (LeTs, stage 1); on generated images unless you name others.

Weights of a large Aux-Net are made from the learngene in every step; a teacher or the labels tell it what to do. Unless
--published or --no-sample-sizes is given, each step makes a smaller net instead, of random width and depth, so that all
sizes are trained. A run that was interrupted goes on from its newest checkpoint when the same command is given again.
The result is OUTPUT/predictor: config.json, model.safetensors in 16 bit, and a model card. With --published the sizes,
the loss and the recipe are those of the paper. Rates are per step and not scaled by the batch: the published 5e-4 is
for 512 images per step over all processes.
"""

import argparse
from typing import Any, get_args

from hf_paraminit.cli.arguments import Subparsers, verb_parser
from hf_paraminit.cli.train.learngene_options import (
    PUBLISHED_RECIPE,
    SMALL_RECIPE,
    Presets,
    add_data_options,
    add_recipe_options,
    add_run_options,
    add_size_options,
)
from hf_paraminit.cli.train.learngene_run import objective_settings, prepare, train_and_save
from hf_paraminit.lets.config import DepthScheme, GeneScheme, LeTsConfig, WidthScheme, adjacent_pairs
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.train import AuxTraining, aux_accuracy

EXAMPLES = """
paraminit train learngene-LeTs --output runs/lets
paraminit train learngene-LeTs --output runs/try --steps 200
paraminit train learngene-LeTs --output runs/cifar --data torch/cifar10@./data --img-size 32 --patch-size 4 --epochs 50
torchrun --nproc_per_node 4 -m hf_paraminit train learngene-LeTs --published --data DATA --teacher levit_384 --output l
"""

# Sizes of the built-in learngene, and those of the paper.
BUILTIN: dict[str, Any] = {
    "embed_dim": 64, "num_heads": 1, "depth": 4, "aux_dim": 192, "num_blocks": 4, "repeat": 2,
    "patch_size": 8, "img_size": 32, "class_token": True,
    "gene_init": "scaled", "width_init": "rand", "depth_init": "stackbert_noisy", "drop_path": 0.0,
    "sample_sizes": True, **SMALL_RECIPE,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "embed_dim": 384, "num_heads": 6, "depth": 8, "aux_dim": 768, "num_blocks": 8, "repeat": 2,
    "patch_size": 16, "img_size": 224, "class_token": False,
    "gene_init": "published", "width_init": "rand", "depth_init": "stackbert_noisy", "drop_path": 0.1,
    "sample_sizes": False, **PUBLISHED_RECIPE,
}  # fmt: skip
PRESETS = Presets(small=BUILTIN, published=PUBLISHED, steps=1600, epochs=300)
SIZES = {
    "--embed-dim": "width of the learngene",
    "--num-heads": "its attention heads",
    "--depth": "its layers, an even number",
    "--aux-dim": "width of the Aux-Net, the largest that can be made",
    "--num-blocks": "depth blocks",
    "--repeat": "layers of the Aux-Net per depth block",
    "--patch-size": "side of a patch in pixels",
    "--img-size": "side of an image in pixels",
}


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "learngene-LeTs", __doc__, examples=EXAMPLES)
    add_run_options(parser)
    add_data_options(parser)
    add_size_options(parser, PRESETS, SIZES)
    for option, meaning in (
        ("--class-token", "classify a token"),
        ("--sample-sizes", "train nets of random sizes, not the Aux-Net alone"),
    ):
        parser.add_argument(option, action=argparse.BooleanOptionalAction, help=f"{meaning} ({PRESETS.text(option)})")
    for option, scheme in (("--gene-init", GeneScheme), ("--width-init", WidthScheme), ("--depth-init", DepthScheme)):
        parser.add_argument(option, choices=get_args(scheme), help=f"how it starts ({PRESETS.text(option)})")
    add_recipe_options(parser, PRESETS)


def run(arguments: argparse.Namespace) -> None:
    data = prepare(arguments, PRESETS)
    config = _architecture(arguments, data.num_classes)
    objective = AuxTraining(
        LeTsGenerator.new(config, seed=arguments.seed),
        samples_sizes=arguments.sample_sizes,
        **objective_settings(arguments, data),
    )
    train_and_save(
        objective, data, arguments, architecture=config.to_dict(), recorded="sample_sizes", accuracy=aux_accuracy
    )


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
