"""Evaluate graph hypernetworks by the experiments of GHN-2 and GHN-3 (arXiv 2110.13100, 2303.04143).

accuracy    of predicted weights without training, by network and by split
finetune    training from predicted weights: --protocol full, or few-shot (100 images per class)
detection   a pedestrian detector (Penn-Fudan in DATA) on a network with predicted weights
measure     four properties of networks by short trainings, as the file that the next two learn from
properties  these predicted from graph embeddings: --networks LEARNED TESTED
nas         the best of many networks by a predicted property: --networks LEARNED TESTED SEARCHED
diversity   how different predicted tensors of one shape are
published   tables and figures of GHN-3's published results

NETWORKS are splits of DeepNets-1M (val, test, wide, deep, dense, bnfree, search, predefined; test:0 or test:0-15 for
parts), genotypes (DARTS, DARTS:48x14 for width x cells), torchvision:PATTERN, timm:PATTERN or names of timm. Splits
are read from --deepnets, or generated. INITS are what init= takes, or checkpoint files of the published code; only
fine-tuning takes others than graph hypernetworks ("default" is the network's own start). DATA is as for `compare`.
DIR gets tables (CSV, JSON), figures (PNG, with their numbers as CSV) and runs.jsonl. The same command goes on where an
interrupted one stopped. Under torchrun, networks are shared out; fine-tuning uses all processes for each network.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, positive, verb_parser
from hf_paraminit.cli.compare import names
from hf_paraminit.cli.evaluate.ghn_experiments import EXPERIMENTS
from hf_paraminit.evaluation.fine_tuning import PROTOCOLS
from hf_paraminit.evaluation.properties import PROPERTIES
from hf_paraminit.io.run_store import locked
from hf_paraminit.training.processes import is_launched, is_main_process

EXAMPLES = """
paraminit evaluate ghn3 --networks test:0-15 --readout features --output accuracy
paraminit evaluate ghn3 --inits ghn2.pt --networks test --deepnets data --data torch/cifar10@data --batchnorm batch
paraminit evaluate ghn3 --inits ghn3:xlm16 --networks 'torchvision:*' --data imagenet --img-size 224
paraminit evaluate ghn3 --experiment finetune --protocol few-shot --networks predefined:0 --data torch/cifar10@data
paraminit evaluate ghn3 --experiment detection --networks DARTS:48x14 --data data/PennFudanPed --output detection
paraminit evaluate ghn3 --experiment properties --networks val test --properties properties.csv
paraminit evaluate ghn3 --experiment nas --networks val test search --properties properties.csv --objective val_acc
torchrun --nproc_per_node 2 -m hf_paraminit evaluate ghn3 --networks test --readout features --output accuracy
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "ghn3", __doc__, examples=EXAMPLES)
    parser.add_argument(
        "--experiment", choices=list(EXPERIMENTS), default="accuracy", help="what to do (default: accuracy)"
    )
    _add_input(parser)
    _add_accuracy(parser)
    _add_properties(parser)
    _add_training(parser)
    parser.add_argument("--published", type=Path, metavar="FILE", help="published: JSON lines of GHN-3's results")
    parser.add_argument("--processes", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even when there is a GPU")
    parser.add_argument(
        "--output", type=Path, default=Path("evaluation"), metavar="DIR", help="folder to write (default: evaluation)"
    )
    add_json_switch(parser)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inits", type=names, default=["ghn3"], metavar="A,B,...", help="predictors (default: ghn3)")
    parser.add_argument("--networks", nargs="+", default=["test"], metavar="NETWORKS", help="which (default: test)")
    parser.add_argument("--deepnets", type=Path, metavar="PLACE", help="HDF5 file of DeepNets-1M, or its folder")
    parser.add_argument("--pretrained", action="store_true", help="start networks of timm from published weights")
    parser.add_argument("--data", default="synthetic", metavar="DATA", help="images (default: synthetic)")
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of the images (default: 32)")
    parser.add_argument("--all-images", action="store_true", help="read all images, not 4000 and 1000 evenly chosen")
    parser.add_argument("--validation", action="store_true", help="report on validation images")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="seeds per network (default: 1)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="images per batch (default: the protocol's)")


def _add_accuracy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--readout",
        choices=("head", "cut-head", "features"),
        default="head",
        help="accuracy: of the predicted classifier, of it cut to the data's classes, or of simple classifiers on the "
        "features before it (default: head)",
    )
    parser.add_argument(
        "--batchnorm",
        choices=("recalibrated", "batch"),
        default="recalibrated",
        help="accuracy: statistics estimated from training images, or of each test batch (default: recalibrated)",
    )
    parser.add_argument(
        "--pixel-noise",
        type=float,
        default=0.0,
        metavar="X",
        help="accuracy: noise on test pixels in 0..1 (published: 0.08 on CIFAR-10, 0.18 on ImageNet)",
    )


def _add_properties(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--properties", type=Path, metavar="FILE", help="properties, nas: known values (CSV or JSON)")
    parser.add_argument("--objective", choices=PROPERTIES, default="val_acc", help="nas: (default: val_acc)")
    parser.add_argument("--steps", type=positive, default=150, metavar="N", help="measure: (default: 150)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="full", help="finetune: (default: full)")
    for option, kind, meaning in (
        ("--epochs", positive, "passes over the data"),
        ("--shots", positive, "training images per class"),
        ("--num-test", positive, "detection: images kept for the test"),
        ("--learning-rate", float, "at the start"),
        ("--weight-decay", float, "of the optimiser"),
    ):
        parser.add_argument(option, type=kind, metavar="N", help=f"{meaning} (default: the protocol's)")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), help="finetune: (default: sgd)")
    parser.add_argument("--any-classes", action="store_true", help="finetune: take predicted heads of other classes")
    parser.add_argument("--noise", type=float, default=0.0, metavar="X", help="noise on predicted weights, as 1e-5")
    parser.add_argument("--orthogonalize", action="store_true", help="make predicted weights orthogonal")
    parser.add_argument("--first-layer", type=positive, default=1, metavar="N", help="first weight that these change")


def run(arguments: argparse.Namespace) -> None:
    if is_launched():
        PartialState(cpu=arguments.cpu)  # before anything asks for it: the first to ask decides the device
    with locked(arguments.output if is_main_process() else None):
        result = EXPERIMENTS[arguments.experiment](arguments)
    if result is None:
        return
    if arguments.json:
        print(json.dumps(result.document, indent=2, default=repr))
    else:
        print(result)
        print(f"Written to {arguments.output}.")
