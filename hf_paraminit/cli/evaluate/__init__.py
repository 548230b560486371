"""Evaluate a predictor by the experiments of its papers: tables, curves and records in one folder."""

import sys

from hf_paraminit.cli.arguments import Subparsers, add_parts, verb_parser

EXAMPLES = """
paraminit evaluate ghn3 --networks test:0-15 --readout features --output accuracy
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "evaluate", __doc__, examples=EXAMPLES)
    add_parts(parser, sys.modules[__name__], metavar="METHOD")
