"""Train a model zoo: one network from many seeds and settings, with a checkpoint of every epoch.

MODEL is cnn-tiny, cnn-small, cnn-medium or cnn-large (the networks of the published zoos), or any name that
timm.create_model takes. DATA is synthetic, digits, a folder with one sub-folder of images per class, or what
timm.data.create_dataset takes, as torch/cifar10@FOLDER. Small networks are trained many at once where that is faster.
The same command goes on where an interrupted one stopped.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, json_object, positive, seed, verb_parser
from hf_paraminit.cli.zoo.info import as_text, describe
from hf_paraminit.cli.zoo_networks import network_of
from hf_paraminit.evaluation.tasks import load_task
from hf_paraminit.hyperrep.zoo_build import STACK_SIZE, ZooPlan, build_zoo
from hf_paraminit.hyperrep.zoo_training import ZooData

EXAMPLES = """
paraminit zoo build cnn-small --seeds 200 --output zoo
paraminit zoo build cnn-tiny --data digits --img-size 8 --seeds 200 --grid '{"learning_rate": [1e-3, 4e-3]}' --output z
paraminit zoo build resnet18 --model-kwargs '{"channels": [8, 8, 16, 16]}' --seeds 20 --save-epochs 5,10 --output z
torchrun --nproc_per_node 2 -m hf_paraminit zoo build cnn-large --seeds 200 --output zoo
"""

IMG_SIZE = {"cnn-tiny": 16}  # pixels; others 32


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "build", __doc__, examples=EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="network of the zoo")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the zoo")
    parser.add_argument("--data", default="synthetic", metavar="DATA", help="what to train on (default: synthetic)")
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of the images (default: 32; cnn-tiny 16)")
    parser.add_argument("--seeds", type=positive, default=50, metavar="N", help="models per setting (default: 50)")
    parser.add_argument("--first-seed", type=seed, default=0, metavar="N", help="seed of the first (default: 0)")
    parser.add_argument("--epochs", type=positive, default=25, metavar="N", help="passes over the data (default: 25)")
    parser.add_argument("--save-epochs", type=epochs, metavar="A,B,...", help="epochs to keep (default: all from 1)")
    parser.add_argument(
        "--grid",
        type=json_object,
        default={},
        metavar="JSON",
        help="setting -> list of values, all combined: optimizer (adam, adamw, sgd), learning_rate, weight_decay, "
        "momentum, batch_size, schedule (constant, onecycle), init, or an argument of the network",
    )
    parser.add_argument(
        "--model-kwargs", type=json_object, default={}, metavar="JSON", help="arguments of the network's constructor"
    )
    parser.add_argument(
        "--stack-size",
        type=positive,
        default=STACK_SIZE,
        metavar="N",
        help=f"most models trained at once (default: {STACK_SIZE})",
    )
    parser.add_argument(
        "--always-stacked", action="store_true", help="train models at once without measuring whether it is faster"
    )
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help="worker processes (default: 1)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where to train, as cuda (default: cpu)")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    task = load_task(arguments.data, size=arguments.img_size or IMG_SIZE.get(arguments.model, 32))
    network = network_of(arguments, task.image_shape, task.num_classes)
    first = arguments.first_seed
    plan = ZooPlan.grid(
        range(first, first + arguments.seeds),
        arguments.grid,
        epochs=arguments.epochs,
        save_epochs=arguments.save_epochs,
        stack_size=arguments.stack_size,
        always_stacked=arguments.always_stacked,
    )
    zoo = build_zoo(
        arguments.output,
        network,
        ZooData(name=task.name, train=task.train, validation=task.validation, test=task.test),
        plan,
        architecture=arguments.model,
        processes=arguments.processes,
        device=arguments.device,
        card={
            "command": shlex.join(["paraminit", *sys.argv[1:]]),
            "network": network.to_dict(),
            "num_classes": task.num_classes,
            "image_shape": list(task.image_shape),
        },
    )
    record = describe(zoo)
    print(json.dumps(record, indent=2) if arguments.json else f"{as_text(record)}\nWritten to {arguments.output}.")


def epochs(text: str) -> list[int]:
    """Type of an argument that holds epochs between commas."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of epochs between commas")
    return sorted({int(word) for word in words})
