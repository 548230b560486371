"""Build, inspect, import and export model zoos: populations of trained networks to learn a representation from."""

import sys

from hf_paraminit.cli.arguments import Subparsers, add_parts, verb_parser

EXAMPLES = """
paraminit zoo build cnn-small --seeds 200 --output zoo
paraminit zoo info zoo
paraminit zoo import ./published-zoo --model cnn-small --output zoo
paraminit zoo export zoo --output ./published-layout
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "zoo", __doc__, examples=EXAMPLES)
    add_parts(parser, sys.modules[__name__], metavar="COMMAND")
