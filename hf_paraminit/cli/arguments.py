"""Pieces that the parsers of several verbs are made of."""

import argparse
import importlib
import json
import pkgutil
from collections.abc import Callable
from types import ModuleType
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


def add_parts(parser: argparse.ArgumentParser, package: ModuleType, *, metavar: str) -> None:
    """Give a verb its parts: each file of `package` with `add_parser` and `run` is one, as a verb's file is.

    Args:
        parser: parser of the verb.
        package: folder of the verb, for instance `hf_paraminit.cli.train`.
        metavar: what the help calls a part.
    """
    parts = parser.add_subparsers(dest="part", metavar=metavar, required=True)
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        if hasattr(module, "add_parser"):
            before = set(parts.choices)
            module.add_parser(parts)
            (name,) = set(parts.choices) - before
            make_runnable(parts.choices[name], module.run)


def make_runnable(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Tell a parser which function its arguments are for."""
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


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
