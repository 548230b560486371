"""Finds the verbs, parses the arguments, and turns failures into messages and exit codes."""

import argparse
import ast
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec

import hf_paraminit.cli as verb_package
from hf_paraminit import __version__
from hf_paraminit.cli.arguments import Subparsers, make_runnable
from hf_paraminit.errors import ParamInitError
from hf_paraminit.hooks.default_request import set_default_of_process

FAILED = 1
# as shells report a process that was ended by the signal
INTERRUPTED = 128 + 2
PIPE_CLOSED = 128 + 13

DESCRIPTION = "Learned initial weights for timm and Hugging Face vision models."
EPILOG = """\
Exit codes: 0 done, 1 failed, 2 wrong arguments.

Examples:
  paraminit init resnet50 --init ghn3 --output ./resnet50-ghn3
  paraminit list
  paraminit graph resnet50 --output resnet50.svg
  paraminit VERB --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `paraminit`; those of this process by default.

    Returns:
        The exit code: 0 done, 1 failed, 130 interrupted, 141 the reader of the output went away.

    Raises:
        SystemExit: after `--help` and `--version` with code 0, for wrong arguments with code 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser(words).parse_args(words)
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line, complete for the verb that it names, with only the names of the others."""
    parser = argparse.ArgumentParser(
        prog="paraminit",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf_paraminit {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    chosen = next((word for word in words if not word.startswith("-")), None)
    for verb, summary in find_verbs().items():
        if verb == chosen:
            _add_verb(subparsers, verb)
        else:
            subparsers.add_parser(verb, help=summary)
    return parser


def find_verbs() -> dict[str, str]:
    """Verb -> one line about it, read from the source files of this package without importing them."""
    verbs = {}
    for module in pkgutil.iter_modules(verb_package.__path__):
        tree = ast.parse(_source(f"{verb_package.__name__}.{module.name}"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "add_parser" for node in tree.body):
            docstring = ast.get_docstring(tree) or ""
            verbs[module.name.replace("_", "-")] = docstring.partition("\n")[0]
    return verbs


def _source(module_name: str) -> str:
    spec = find_spec(module_name)
    assert spec is not None
    assert spec.loader is not None
    return spec.loader.get_source(module_name)  # type: ignore[attr-defined]


def _add_verb(subparsers: Subparsers, verb: str) -> None:
    module = importlib.import_module(f"{verb_package.__name__}.{verb.replace('-', '_')}")
    module.add_parser(subparsers)
    if hasattr(module, "run"):  # a verb of several parts has a `run` in each
        make_runnable(subparsers.choices[verb], module.run)


def _run(arguments: argparse.Namespace) -> int:
    set_default_of_process(None)  # what the environment asks for concerns scripts; `paraminit run` puts it in force
    try:
        arguments.run(arguments)
    except ParamInitError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"paraminit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    finally:
        if arguments.verb != "run":  # a script's own is the script's to end
            _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """End what a launched verb began: gloo's threads abort a process that ends while they hold its objects."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _discard_output() -> None:
    """Let the interpreter flush what is left into nothing, so that it has no second failure to report."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
