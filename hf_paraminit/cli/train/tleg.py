"""Train a TLEG learngene, two blocks that make nets of any depth and one width; on generated images by default.

The weights of an auxiliary net of --depth layers are made from the two blocks in every step; a teacher or the labels
tell it what to do. A run that was interrupted goes on from its newest checkpoint when the same command is given again.
The result is OUTPUT/predictor: config.json, model.safetensors in 16 bit, and a model card. With --published sizes, loss
and recipe are those of the paper. Rates are per step and not scaled by the batch.
"""

import argparse
from typing import Any, get_args

from accelerate import PartialState

from hf_paraminit.cli.arguments import Subparsers, verb_parser
from hf_paraminit.cli.train.learngene_options import (
    PUBLISHED_RECIPE,
    RECORDED,
    SMALL_RECIPE,
    Presets,
    add_data_options,
    add_recipe_options,
    add_run_options,
    add_size_options,
    distillation_of,
    fill_in_length,
    identity_of,
    open_data,
    settings_of,
    teacher_of,
)
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.lets.config import GeneScheme
from hf_paraminit.lets.tleg import TLEG, TLEGConfig
from hf_paraminit.lets.train import TLEGTraining, label_accuracy, train_learngene

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
    PRESETS.fill_in(arguments)
    data = open_data(arguments)
    fill_in_length(arguments, data, PRESETS)
    names = ("embed_dim", "num_heads", "patch_size", "img_size", "gene_init")
    config = TLEGConfig(**{name: getattr(arguments, name) for name in names}, num_classes=data.num_classes)
    objective = TLEGTraining(
        TLEG.new(config, seed=arguments.seed),
        depth=arguments.depth,
        distillation=distillation_of(arguments),
        teacher=teacher_of(arguments, data.num_classes),
        drop_path_rate=arguments.drop_path,
    )
    settings, recipe = settings_of(arguments)
    identity = identity_of(arguments, config.to_dict(), "depth")
    learngene = train_learngene(objective, data.batch_at, settings, recipe, identity=identity).cpu()
    if not PartialState().is_main_process:
        return
    net = objective.aux_net.cpu()
    net.generator = learngene
    learngene.metadata = {
        "training": {name: getattr(arguments, name) for name in (*RECORDED, "depth")},
        "metrics": {"aux_accuracy": round(label_accuracy(net, data.validation), 2)} if data.validation else {},
    }
    folder = arguments.output / "predictor"
    with atomic_folder(folder) as staging:
        learngene.half().save_pretrained(staging)
    for name, value in learngene.metadata["metrics"].items():
        print(f"{name} on validation images: {value} %")
    print(f'Written to {folder}. Use with init="local-dir:{folder}".')
