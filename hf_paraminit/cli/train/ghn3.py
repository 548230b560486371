"""Train a GHN-3 on random small timm networks and generated images; nothing is downloaded.

A run that was interrupted goes on from its newest checkpoint when the same command is given again. The result is
OUTPUT/predictor: config.json, model.safetensors in 16 bit, and a model card.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from hf_paraminit.cli.arguments import Subparsers, positive, seed, verb_parser
from hf_paraminit.deepnets.families import draw_pool
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.train import MetaBatches, MetaTraining, TargetNetwork
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.training.loop import TrainingConfig, train
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

EXAMPLES = """
paraminit train ghn3 --output runs/ghn3
paraminit train ghn3 --output runs/try --steps 200
torchrun --nproc_per_node 2 -m hf_paraminit train ghn3 --output runs/ghn3
"""

# Class counts of the generated images (fractals, contours, shapes, textures): few, so that a short run learns them.
CLASSES = (8, 4, 4, 4)
# Width of the predictor's classifier after training; a head with more classes repeats its rows.
NUM_CLASSES = 1000
HEAD_DIM = 8  # width of one attention head, as in the published GHN-3-T
# What the model card states of the command.
RECIPE = ("steps", "stop_after", "networks", "max_parameters", "meta_batch", "batch_size", "learning_rate", "seed")


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "ghn3", __doc__, examples=EXAMPLES)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    numbers = (
        ("--steps", 24000, "optimiser steps"),
        ("--networks", 48, "networks in the pool"),
        ("--max-parameters", 1_200_000, "most parameters of a network"),
        ("--meta-batch", 1, "networks per step and process"),
        ("--batch-size", 64, "images per step and process"),
        ("--hidden-dim", 32, "width of the predictor, a multiple of 8"),
        ("--num-layers", 3, "layers of the predictor"),
        ("--max-channels", 64, "most channels of a decoded block"),
        ("--max-side", 11, "largest side of a decoded kernel"),
        ("--checkpoint-every", 500, "steps between checkpoints"),
    )
    for option, default, meaning in numbers:
        parser.add_argument(option, type=positive, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--stop-after", type=positive, metavar="N", help="stop at this step of the schedule")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="X", help="peak rate (default: 2e-3)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of networks, images, weights (default: 0)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")


def run(arguments: argparse.Namespace) -> None:
    images = SyntheticImages(SyntheticSpec(seed=arguments.seed, preset=CLASSES))
    ghn = train(
        MetaTraining(GHN.new(_architecture(arguments, images.num_classes), seed=arguments.seed)),
        _meta_batches(arguments, images),
        TrainingConfig(
            output=str(arguments.output),
            steps=arguments.steps,
            stop_after=arguments.stop_after,
            learning_rate=arguments.learning_rate,
            warmup_steps=200,
            checkpoint_every=arguments.checkpoint_every,
            seed=arguments.seed,
            cpu=arguments.cpu,
        ),
    ).ghn
    assert isinstance(ghn, GHN)
    ghn = ghn.cpu().with_new_classifier(NUM_CLASSES, seed=arguments.seed)  # generated classes are not a user's
    ghn.metadata = {"training": {name: getattr(arguments, name) for name in RECIPE}}
    folder = arguments.output / "predictor"
    with atomic_folder(folder) as staging:
        ghn.half().save_pretrained(staging)
    print(f'Written to {folder}. Use with init="local-dir:{folder}".')


def _architecture(arguments: argparse.Namespace, num_classes: int) -> GHNConfig:
    channels, side = arguments.max_channels, arguments.max_side
    return GHNConfig(
        hidden_dim=arguments.hidden_dim,
        num_layers=arguments.num_layers,
        num_heads=max(1, arguments.hidden_dim // HEAD_DIM),
        max_shape=(channels, channels, side, side),
        num_classes=num_classes,
    )


def _meta_batches(arguments: argparse.Namespace, images: SyntheticImages) -> MetaBatches:
    """Join images and architectures, which know nothing of each other."""
    pool = draw_pool(
        arguments.networks, images.num_classes, seed=arguments.seed, max_parameters=arguments.max_parameters
    )
    return MetaBatches(
        networks=[TargetNetwork.from_module(network) for network in pool],
        images_at=_training_images(images, arguments.batch_size),
        meta_batch=arguments.meta_batch,
        first=arguments.steps // 24,
        joining=arguments.steps // 2,
        seed=arguments.seed,
    )


def _training_images(images: SyntheticImages, batch_size: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    def images_at(index: int) -> tuple[Tensor, Tensor]:
        pixels, labels = images.batch("train", index, batch_size)
        return normalize(pixels), labels

    return images_at
