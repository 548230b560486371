"""`paraminit train`: train a predictor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  paraminit train ghn3 --output runs/ghn3               the recipe of the built-in predictor
  paraminit train ghn3 --output runs/try --steps 200    a short run, to see it work
  torchrun --nproc_per_node 2 -m hf_paraminit train ghn3 --output runs/ghn3
A run that was interrupted goes on from its newest checkpoint when the same command is given again."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the verb. The defaults are the recipe of the built-in predictor."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train a predictor",
        description="Train a graph hypernetwork on random small timm networks and generated images; no download.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=["ghn3"], help="which predictor")
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoints, metrics and the result")
    parser.add_argument("--steps", type=int, default=14000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=32, help="networks in the pool (default: %(default)s)")
    parser.add_argument("--max-parameters", type=int, default=1_200_000, help="of a network (default: %(default)s)")
    parser.add_argument("--meta-batch", type=int, default=1, help="networks per step (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (default: %(default)s)")
    parser.add_argument("--hidden-dim", type=int, default=32, help="width of the GHN (default: %(default)s)")
    parser.add_argument("--num-layers", type=int, default=3, help="layers of the GHN (default: %(default)s)")
    parser.add_argument("--max-channels", type=int, default=64, help="of a decoded block (default: %(default)s)")
    parser.add_argument("--max-side", type=int, default=11, help="of a decoded kernel (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the cosine (default: %(default)s)")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of networks, images and weights (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, then write the predictor to OUTPUT/predictor in 16 bit."""
    from hf_paraminit.ghn.model import GHN
    from hf_paraminit.ghn.train import MetaTraining
    from hf_paraminit.training.loop import TrainingConfig, train

    objective = MetaTraining(GHN.new(_ghn_config(args), seed=args.seed))
    trained = train(
        objective,
        _meta_batches(args),
        TrainingConfig(
            output=str(args.output),
            steps=args.steps,
            learning_rate=args.learning_rate,
            warmup_steps=200,
            checkpoint_every=args.checkpoint_every,
            seed=args.seed,
            cpu=args.cpu,
        ),
    )
    ghn = trained.ghn
    ghn.redraw_classifier(seed=args.seed)  # the generated classes mean nothing to a user's
    ghn.metadata = {"training": {key: str(value) for key, value in sorted(vars(args).items()) if key in _RECIPE}}
    folder = args.output / "predictor"
    ghn.half().save_pretrained(folder)
    print(f"wrote {folder}; use it with init='local-dir:{folder}'")
    return 0


_RECIPE = (
    "steps",
    "networks",
    "max_parameters",
    "meta_batch",
    "batch_size",
    "learning_rate",
    "seed",
)
# Class counts of the generated images (fractals, contours, shapes, textures): few, so that a short run learns them.
_CLASSES = (8, 4, 4, 4)
# Width of the predicted classifier: a head with more classes repeats its rows, so it covers common class counts.
_NUM_CLASSES = 1000


def _ghn_config(args: argparse.Namespace) -> Any:
    from hf_paraminit.ghn.config import GHNConfig

    return GHNConfig(
        hidden_dim=args.hidden_dim,
        num_layers=args.num_layers,
        num_heads=max(1, args.hidden_dim // 8),
        max_shape=(args.max_channels, args.max_channels, args.max_side, args.max_side),
        num_classes=_NUM_CLASSES,
        unit_variance=True,
    )


def _meta_batches(args: argparse.Namespace) -> Any:
    """Join images and architectures, which know nothing of each other."""
    from hf_paraminit.deepnets.families import draw_pool
    from hf_paraminit.ghn.train import MetaBatches, TargetNetwork
    from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

    data = SyntheticImages(SyntheticSpec(seed=args.seed, preset=_CLASSES))

    def images_at(index: int) -> Any:
        images, labels = data.batch("train", index, args.batch_size)
        return normalize(images), labels

    pool = draw_pool(args.networks, data.num_classes, seed=args.seed, max_parameters=args.max_parameters)
    return MetaBatches(
        networks=[TargetNetwork.from_module(network) for network in pool],
        images_at=images_at,
        meta_batch=args.meta_batch,
        first=args.steps // 12,
        joining=args.steps // 2,
        seed=args.seed,
    )
