"""Generate, describe and show networks of DeepNets-1M, the architectures that graph hypernetworks learn on."""

import sys

from hf_paraminit.cli.arguments import Subparsers, add_parts, verb_parser

EXAMPLES = """
paraminit deepnets generate val --output data
paraminit deepnets info data
paraminit deepnets show test 0
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "deepnets", __doc__, examples=EXAMPLES)
    add_parts(parser, sys.modules[__name__], metavar="ACTION")
