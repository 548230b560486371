"""Train one network with SGD, the baseline of predicted weights: of DeepNets-1M by its number, or any timm model.

It starts from its own random values, or with --init from predicted ones. A run that was interrupted goes on from its
newest checkpoint when the same command is given again. The result is OUTPUT/model.safetensors, and OUTPUT/result.json
with the accuracy on images that were not trained on.
"""

import argparse
import json
from pathlib import Path

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
from hf_paraminit.training.classifier import (
    SGD_LEARNING_RATE,
    SGD_WEIGHT_DECAY,
    ClassifierTraining,
    accuracy_on,
    sgd,
)
from hf_paraminit.training.images import open_images
from hf_paraminit.training.loop import TrainingConfig, train
from hf_paraminit.training.schedules import SCHEDULES, epoch_schedule

EXAMPLES = """
paraminit train network --split test --arch 0 --output runs/test0
paraminit train network --split test --arch 0 --deepnets data --data torch/cifar10@data --output runs/cifar0
paraminit train network resnet18 --data ./photos --img-size 224 --output runs/resnet18
paraminit train network resnet18 --init ghn3 --output runs/resnet18-ghn3
"""

IMAGENET_SIDE = 224  # pixels
# What decides the trained weights besides the settings of the loop.
IDENTITY = ("model", "model_kwargs", "split", "arch", "deepnets", "init", "data", "img_size", "epochs", "batch_size",
            "schedule", "label_smoothing")  # fmt: skip


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
    parser.add_argument("--data", default="synthetic", metavar="DATA",
                        help="synthetic (the default), a folder of images by class, or a timm data set "
                        "(torch/cifar10@FOLDER)")  # fmt: skip
    parser.add_argument("--img-size", type=positive, default=32, metavar="N", help="side in pixels (default: 32)")
    parser.add_argument("--epochs", type=positive, default=50, metavar="N", help="passes over the data (default: 50)")
    parser.add_argument("--steps", type=positive, metavar="N", help="optimiser steps (default: as --epochs say)")
    parser.add_argument("--batch-size", type=positive, default=96, metavar="N",
                        help="images per step and process (default: 96)")  # fmt: skip
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the rate (default: cosine)")
    for option, default, meaning in (
        ("--learning-rate", SGD_LEARNING_RATE, "of SGD with momentum 0.9"),
        ("--weight-decay", SGD_WEIGHT_DECAY, "added to the gradients"),
        ("--label-smoothing", 0.0, "of the targets"),
    ):
        parser.add_argument(option, type=float, default=default, metavar="X", help=f"{meaning} (default: {default})")
    add_loop_options(parser)


def run(arguments: argparse.Namespace) -> None:
    if (arguments.model is None) == (arguments.arch is None):
        raise TrainingConfigError("Name either a timm model or, with --arch, a network of DeepNets-1M.")
    images = open_images(arguments.data, size=arguments.img_size, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    network = _build(arguments, images.num_classes)
    if arguments.init is not None:
        initialize(network, arguments.init, seed=arguments.seed)
    per_epoch = max(1, len(images) // (arguments.batch_size * PartialState(cpu=arguments.cpu).num_processes))
    training = train(
        ClassifierTraining(network, label_smoothing=arguments.label_smoothing),
        lambda index: images.batch(index, arguments.batch_size),
        TrainingConfig(
            output=str(arguments.output),
            steps=arguments.steps or arguments.epochs * per_epoch,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            **loop_settings(arguments),
        ),
        optimizer=sgd(arguments.learning_rate, arguments.weight_decay),
        schedule=epoch_schedule(arguments.schedule, arguments.epochs),
        identity={name: getattr(arguments, name) for name in IDENTITY},
    )
    assert isinstance(training, ClassifierTraining)
    if PartialState().is_main_process:
        accuracy = accuracy_on(training.network, images.test_batches(arguments.batch_size))
        _write(arguments, training.network, accuracy)


def _build(arguments: argparse.Namespace, num_classes: int) -> nn.Module:
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
        network.expected_input_sz = (3, arguments.img_size, arguments.img_size)  # type: ignore[assignment]
        return network
    options = {"num_classes": num_classes, "is_imagenet_input": arguments.img_size == IMAGENET_SIDE}
    if arguments.deepnets is None:
        return DeepNetsNetwork(**GeneratedNetworks(arguments.split, **options).arguments(arguments.arch))
    return DeepNetsNetwork(**StoredNetworks(arguments.deepnets, arguments.split, **options).arguments(arguments.arch))


def _write(arguments: argparse.Namespace, network: nn.Module, accuracy: float) -> None:
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic_write(arguments.output / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    result = {"accuracy": accuracy, **{name: getattr(arguments, name) for name in (*IDENTITY, "seed")}}
    with atomic_write(arguments.output / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Accuracy {100 * accuracy:.1f} % on unseen images. Written to {arguments.output}.")
