"""Train a predictor; nothing is downloaded unless you ask for it.

A run that was interrupted goes on from its newest checkpoint when the same command is given again. The result is
OUTPUT/predictor: config.json, model.safetensors in 16 bit, and a model card.
"""

import sys

from hf_paraminit.cli.arguments import Subparsers, add_parts, verb_parser

EXAMPLES = """
paraminit train ghn3 --output runs/ghn3
torchrun --nproc_per_node 2 -m hf_paraminit train ghn3 --output runs/ghn3
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "train", __doc__, examples=EXAMPLES)
    add_parts(parser, sys.modules[__name__], metavar="METHOD")
