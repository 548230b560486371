"""Train a hyper-representation on a model zoo, for init="hyperrep-sample".

ZOO is what `paraminit zoo build` or `paraminit zoo import` wrote. An auto-encoder learns codes of the networks'
weights; the codes of the best 30 % of the training networks are kept as anchors of the sampling. A run that was
interrupted goes on from its newest checkpoint when the same command is given again. The result is OUTPUT/predictor:
config.json, model.safetensors with the anchors in 16 bit, and a model card.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any, get_args

from hf_paraminit.cli.arguments import Subparsers, count, positive, seed, verb_parser
from hf_paraminit.cli.zoo.build import epochs
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.standardize import Mode
from hf_paraminit.hyperrep.train import PreparedZoo, prepare_zoo, train_representation
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.training.loop import TrainingConfig
from hf_paraminit.training.processes import is_main_process

EXAMPLES = """
paraminit train hyperrep zoo --output runs/hyperrep
paraminit train hyperrep zoo --output runs/hyperrep --epochs 15,20 --window 64 --halo 12 --norms packed
paraminit train hyperrep zoo --output runs/sane --gamma 0.05 --permute --model-dim 1024 --num-heads 8 --latent-dim 128
torchrun --nproc_per_node 2 -m hf_paraminit train hyperrep zoo --output runs/hyperrep
"""

WARMUP_SHARE = 0.3  # of the steps, as in SANE's one-cycle schedule
WEIGHT_DECAY = 3e-9  # SANE's
DATA_SETTINGS = ("num_classes", "in_chans", "img_size")  # of a network, which the images decide
RECIPE = (
    "steps", "stop_after", "batch_size", "learning_rate", "gamma", "noise", "permute", "balance_layers", "align",
    "token_dim", "window", "halo", "norms", "standardize", "epochs", "seed",
)  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "hyperrep", __doc__, examples=EXAMPLES)
    parser.add_argument("zoo", type=Path, metavar="ZOO", help="folder of the zoo")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--epochs", type=epochs, metavar="A,B,...", help="epochs of the zoo to learn from (default: all)"
    )
    numbers = (
        ("--steps", 900, "optimiser steps"),
        ("--batch-size", 64, "windows per step and process"),
        ("--model-dim", 64, "width of the transformers; best above that of a token"),
        ("--num-heads", 4, "attention heads"),
        ("--num-layers", 2, "blocks of the encoder, and of the decoder"),
        ("--latent-dim", 16, "numbers per token's code"),
        ("--window", 64, "tokens of a training window"),
        ("--max-anchors", 15, "most anchors to keep"),
        ("--checkpoint-every", 300, "steps between checkpoints"),
    )
    for option, default, meaning in numbers:
        parser.add_argument(option, type=positive, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--stop-after", type=positive, metavar="N", help="stop at this step of the schedule")
    parser.add_argument("--token-dim", type=positive, metavar="N", help="weights per token (default: the longest row)")
    parser.add_argument("--halo", type=count, default=12, metavar="N", help="context of a window (default: 12 tokens)")
    parser.add_argument(
        "--norms",
        choices=("skip", "packed", "channels"),
        default="skip",
        help="whether scales and shifts of norm layers are tokens (default: skip, they stay as they are)",
    )
    parser.add_argument(
        "--standardize",
        choices=get_args(Mode),
        default="std",
        help="weights by mean and deviation of their layer, by its range, or (to see what layers are worth) by mean "
        "and deviation of the whole network (default: std)",
    )
    rates = (
        ("--learning-rate", 2e-3, "peak rate"),
        ("--gamma", 0.0, "share of the contrastive loss; SANE has 0.05"),
        ("--noise", 0.1, "relative noise on the inputs"),
    )
    for option, rate, meaning in rates:
        parser.add_argument(option, type=float, default=rate, metavar="X", help=f"{meaning} (default: {rate:g})")
    parser.add_argument("--permute", action="store_true", help="permute the hidden units of the second view")
    parser.add_argument("--balance-layers", action="store_true", help="let every layer count alike in the loss")
    parser.add_argument("--no-align", dest="align", action="store_false", help="leave hidden units in their order")
    parser.add_argument("--skip-faulty", action="store_true", help="leave out models with faults instead of refusing")
    parser.add_argument("--max-abs", type=float, metavar="X", help="leave out networks with larger weights")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the training (default: 0)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")


def run(arguments: argparse.Namespace) -> None:
    started = time.process_time()
    zoo = Zoo.open(arguments.zoo, faults="skip" if arguments.skip_faulty else "refuse")
    prepared = prepare_zoo(
        zoo.select(epochs=arguments.epochs),
        token_dim=arguments.token_dim,
        norms=arguments.norms,
        align=arguments.align,
        standardize=arguments.standardize,
        max_abs=arguments.max_abs,
        seed=arguments.seed,
    )
    representation = train_representation(
        prepared,
        SequenceConfig(
            token_dim=prepared.layout.token_dim,
            model_dim=arguments.model_dim,
            num_heads=arguments.num_heads,
            num_layers=arguments.num_layers,
            latent_dim=arguments.latent_dim,
            window=min(arguments.window, prepared.layout.num_tokens),
            position_axes=4,
            projection_dim=30 if arguments.gamma else 0,
        ),
        TrainingConfig(
            output=str(arguments.output),
            steps=arguments.steps,
            stop_after=arguments.stop_after,
            learning_rate=arguments.learning_rate,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=max(1, int(WARMUP_SHARE * arguments.steps)),
            checkpoint_every=arguments.checkpoint_every,
            seed=arguments.seed,
            cpu=arguments.cpu,
        ),
        batch_size=arguments.batch_size,
        gamma=arguments.gamma,
        noise=arguments.noise,
        permute=arguments.permute,
        balance_layers=arguments.balance_layers,
        max_anchors=arguments.max_anchors,
        halo=arguments.halo,
        norms=arguments.norms,
        name=_network_name(zoo),
    )
    if not is_main_process():
        return
    _describe(representation, arguments, prepared, zoo, time.process_time() - started)
    folder = arguments.output / "predictor"
    representation.save_pretrained(folder)
    scores = representation.metadata["reconstruction"]
    for split, layers in scores.items():
        print(f"reconstruction R2, {split}: " + ", ".join(f"{name} {score:.3f}" for name, score in layers.items()))
    print(f'Written to {folder}. Use with init="hyperrep-sample", init_kwargs={{"source": "{folder}"}}.')


def _network_name(zoo: Zoo) -> str:
    """The architecture, with its arguments and the images that it is for where the zoo's card knows them."""
    shape = " x ".join(map(str, zoo.card.get("image_shape", ())))
    settings = zoo.card.get("network", {}).get("settings", {})
    own = ", ".join(f"{key}={value}" for key, value in settings.items() if key not in DATA_SETTINGS)
    name = zoo.card.get("architecture", "the zoo's network") + (f" ({own})" if own else "")
    return f"{name} for {shape} images" if shape else name


def _describe(
    representation: HyperRepresentation,
    arguments: argparse.Namespace,
    prepared: PreparedZoo,
    zoo: Zoo,
    seconds: float,
) -> None:
    """What the model card says."""
    scores = representation.metadata["reconstruction"]
    representation.metadata |= {
        "training": {name: getattr(arguments, name) for name in RECIPE},
        "zoo": {key: zoo.card[key] for key in ("architecture", "data", "network", "num_models") if key in zoo.card},
        "card": {
            "title": f"Hyper-representation of {representation.config.architecture}",
            "summary": "Codes of the weights of a model zoo (arXiv 2209.14733, 2406.09997), from which new weights of "
            f"the same architecture, {representation.config.architecture}, are sampled.",
            "example": "import hf_paraminit\n\n"
            'hf_paraminit.initialize(model, "$init", seed=3)  # a model of that architecture',
            "predicts": f"{', '.join(prepared.layout.names)}. Batch-norm statistics are never predicted.",
            "training_data": f"{len(prepared.zoo['train'].model_ids)} networks of a zoo of {len(zoo.model_ids)}, "
            f"trained on: {zoo.card.get('data', 'unnamed data')}.",
            "command": shlex.join(["paraminit", *sys.argv[1:]]),
            "cost": f"{seconds:.0f} CPU-seconds for the auto-encoder; the zoo's own cost comes on top",
            "metrics": [_reconstruction_table(scores)],
            "limits": [
                "Networks of this one architecture only.",
                "A copied network of the zoo is usually better than a sampled one; see `paraminit evaluate hyperrep`.",
                "Other images than the zoo's can make it worse than a random start.",
            ],
        },
    }


def _reconstruction_table(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    splits = list(scores)
    rows = [[name, *(scores[split][name] for split in splits)] for name in scores[splits[0]]]
    return {
        "caption": "R2 of the reconstruction, against the mean network",
        "columns": ["layer", *splits],
        "rows": rows,
    }
