"""List the registered initializers."""

import argparse
import dataclasses
import json

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, verb_parser
from hf_paraminit.cli.table import table
from hf_paraminit.initializers.registry import initializer_info, list_initializers

EXAMPLES = """
paraminit list
paraminit list 'ghn*'
paraminit list --json
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "list", __doc__, examples=EXAMPLES)
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="shell-style pattern, as 'ghn*' (default: all)")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    cards = [initializer_info(name) for name in list_initializers(arguments.pattern)]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(card) for card in cards], indent=2))
    elif cards:
        rows = [(card.name, ", ".join(card.variants) or "-", card.paper or "-", card.summary) for card in cards]
        print(table(("NAME", "VARIANTS", "PAPER", "SUMMARY"), rows))
