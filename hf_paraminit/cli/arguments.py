"""Pieces that the parsers of several verbs are made of."""

import argparse
import json
from typing import Any, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def verb_parser(
    subparsers: Subparsers, verb: str, description: str | None, *, examples: str
) -> argparse.ArgumentParser:
    """Add the parser of a verb.

    Args:
        subparsers: what `add_parser` of the verb was given.
        verb: its name.
        description: usually the `__doc__` of the verb's file.
        examples: command lines, one per line.
    """
    indented = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return subparsers.add_parser(
        verb,
        description=description,
        epilog=f"Examples:\n{indented}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_json_switch(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def json_object(text: str) -> dict[str, Any]:
    """Type of an argument that holds a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object; write it as '{{\"name\": value}}'")
    return value


def seed(text: str) -> int:
    """Type of an argument that holds the seed of random draws."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number between 0 and 2**63 - 1")
    return int(text)


def count(text: str) -> int:
    """Type of an argument that holds a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """Type of an argument that holds a whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
