"""Write a model zoo in the layout of the published ones, for software that reads those."""

import argparse
from pathlib import Path

from hf_paraminit.cli.arguments import Subparsers, verb_parser
from hf_paraminit.hyperrep.zoo import SPLITS, Zoo
from hf_paraminit.hyperrep.zoo_import import export_zoo

EXAMPLES = """
paraminit zoo export zoo --output ./published-layout
paraminit zoo export zoo --split train --output ./published-layout
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "export", __doc__, examples=EXAMPLES)
    parser.add_argument("zoo", type=Path, metavar="ZOO", help="folder of the zoo")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--split", choices=SPLITS, help="models of this split only")


def run(arguments: argparse.Namespace) -> None:
    zoo = Zoo.open(arguments.zoo).select(split=arguments.split)
    export_zoo(zoo, arguments.output)
    print(f"{len(zoo)} checkpoints of {len(zoo.model_ids)} models written to {arguments.output}.")
