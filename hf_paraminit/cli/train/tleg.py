"""Train a TLEG learngene, two blocks that make nets of any depth and one width; on generated images by default.

The weights of an auxiliary net of --depth layers are made from the two blocks in every step; a teacher or the labels
tell it what to do. A run that was interrupted goes on from its newest checkpoint when the same command is given again.
The result is OUTPUT/predictor: config.json, model.safetensors in 16 bit, and a model card. With --published sizes, loss
and recipe are those of the paper. Rates are per step and not scaled by the batch.
"""

import argparse
from collections.abc import Sequence
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
from hf_paraminit.lets.config import GeneScheme
from hf_paraminit.lets.tleg import TLEG, TLEGConfig
from hf_paraminit.lets.train import Batch, TLEGTraining, label_accuracy

EXAMPLES = """
paraminit train tleg --output runs/tleg
paraminit train tleg --output runs/cifar --data torch/cifar10@./data --img-size 32 --patch-size 4 --epochs 50
torchrun --nproc_per_node 4 -m hf_paraminit train tleg --published --data DATA --teacher levit_384 --output runs/tleg
"""

SMALL: dict[str, Any] = {
    "embed_dim": 128, "num_heads": 2, "depth": 4, "patch_size": 8, "img_size": 32, "gene_init": "scaled",
    "drop_path": 0.0, **SMALL_RECIPE,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "embed_dim": 384, "num_heads": 6, "depth": 12, "patch_size": 16, "img_size": 224, "gene_init": "published",
    "drop_path": 0.0, **PUBLISHED_RECIPE,
}  # fmt: skip
PRESETS = Presets(small=SMALL, published=PUBLISHED, steps=2000, epochs=150)
SIZES = {
    "--embed-dim": "width, of the learngene and of all nets that are made from it",
    "--num-heads": "attention heads",
    "--depth": "layers of the auxiliary net",
    "--patch-size": "side of a patch in pixels",
    "--img-size": "side of an image in pixels",
}


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "tleg", __doc__, examples=EXAMPLES)
    add_run_options(parser)
    add_data_options(parser)
    add_size_options(parser, PRESETS, SIZES)
    text = PRESETS.text("--gene-init")
    parser.add_argument("--gene-init", choices=get_args(GeneScheme), help=f"how it starts ({text})")
    add_recipe_options(parser, PRESETS)


def run(arguments: argparse.Namespace) -> None:
    data = prepare(arguments, PRESETS)
    names = ("embed_dim", "num_heads", "patch_size", "img_size", "gene_init")
    config = TLEGConfig(**{name: getattr(arguments, name) for name in names}, num_classes=data.num_classes)
    learngene = TLEG.new(config, seed=arguments.seed)
    objective = TLEGTraining(learngene, depth=arguments.depth, **objective_settings(arguments, data))

    def accuracy(trained: TLEG, batches: Sequence[Batch]) -> float:
        net = objective.aux_net.cpu()
        net.generator = trained
        return label_accuracy(net, batches)

    train_and_save(objective, data, arguments, architecture=config.to_dict(), recorded="depth", accuracy=accuracy)
