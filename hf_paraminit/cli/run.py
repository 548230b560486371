"""Run an unmodified script whose timm and Transformers models start from learned weights.

Without --init the script only gains the init= argument. With it, every model that the script builds by
timm.create_model or by a Transformers class is initialized, unless the script asks for something itself; a pretrained
model only where its checkpoint has no values. Everything after SCRIPT or -m MODULE belongs to the script; -- ends the
options before it.
"""

import argparse
import builtins
import io
import logging
import os
import pkgutil
import runpy
import signal
import sys
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader

from hf_paraminit.cli.arguments import Subparsers, json_object, verb_parser
from hf_paraminit.hooks import install_on_import, is_disabled
from hf_paraminit.hooks.default_request import (
    DEFAULT_SCOPES,
    INIT_VARIABLE,
    DefaultRequest,
    default_from_environment,
    export_to_environment,
    set_default_of_process,
)

EXAMPLES = """
paraminit run --init ghn3 train.py --model resnet50
paraminit run --init ghn3 --scope first distill.py --teacher resnet50
paraminit run train.py --model resnet50 --model-kwargs init=ghn3
accelerate launch -m hf_paraminit run --init ghn3 run_image_classification.py --output_dir out
torchrun --nproc_per_node 2 -m hf_paraminit run --init ghn3 -m package.train --epochs 10
"""

INTERRUPTED = 128 + signal.SIGINT


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "run", __doc__, examples=EXAMPLES)
    parser.add_argument(
        "--init",
        metavar="NAME",
        help=f"initializer of the script's models, as paraminit init takes it (default: ${INIT_VARIABLE})",
    )
    parser.add_argument("--init-kwargs", type=json_object, metavar="JSON", help="settings of the initializer")
    parser.add_argument(
        "--scope",
        choices=DEFAULT_SCOPES,
        help="what to write: parameters that no checkpoint provided (missing, the default), everything (all), of the "
        "missing ones the classifier (head), or the missing ones of the first model only (first)",
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="module to run, and its arguments")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="file to run, and its arguments")
    parser.usage = "%(prog)s [options] (SCRIPT | -m MODULE) [arguments of the script]"
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> None:
    is_module = arguments.module is not None
    words = [*(arguments.module or []), *arguments.script]
    if words[:1] == ["--"] and not is_module:
        words = words[1:]
    if not words:
        arguments.usage_error("name a script, or a module after -m")
    _set_default(arguments)
    if is_module:
        _like_python(_execute_module, words)
    elif not os.path.exists(words[0]):
        arguments.usage_error(f"there is no script {words[0]!r}")
    else:
        _like_python(_execute_script, words)


def _set_default(arguments: argparse.Namespace) -> None:
    """Put the request in force for this process and its children; faults in it show here, before the script starts."""
    if arguments.init is not None:
        default: DefaultRequest | None = DefaultRequest(arguments.init, arguments.init_kwargs, arguments.scope)
        export_to_environment(arguments.init, arguments.init_kwargs or {}, arguments.scope)
    elif arguments.init_kwargs is not None or arguments.scope is not None:
        arguments.usage_error("--init-kwargs and --scope go with --init")
    else:
        default = default_from_environment()
    if is_disabled():
        print("paraminit: HF_PARAMINIT_DISABLE is set, so the script runs without the package.", file=sys.stderr)
        return
    set_default_of_process(default)
    install_on_import()
    if default is not None:
        _show_what_is_done()


def _show_what_is_done() -> None:
    """One line per model on standard error, of one process only."""
    logger = logging.getLogger("hf_paraminit")
    if os.environ.get("RANK", "0") == "0" and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("paraminit: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # the script may log to the same place


def _like_python(execute: Callable[[str], None], words: list[str]) -> None:
    """Run with the script's arguments, and leave the process as Python itself would: always by `SystemExit`."""
    sys.argv[:] = words
    try:
        execute(words[0])
    except SystemExit:
        raise
    except BaseException as error:
        error = error.with_traceback(_from_script_on(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
    sys.exit()


def _execute_script(path: str) -> None:
    if pkgutil.get_importer(path) is not None:  # a folder or zip file with a __main__.py
        _replace_first_path([])
        runpy.run_path(os.path.abspath(path), run_name="__main__")
        return
    # runpy.run_path would make one of sys.argv[0] and __file__ differ from Python's, and take __main__ away at the end
    absolute = os.path.join(os.getcwd(), path)
    _replace_first_path([os.path.dirname(os.path.realpath(path))])
    module = types.ModuleType("__main__")
    loader = SourceFileLoader("__main__", absolute)
    vars(module).update(__file__=absolute, __cached__=None, __loader__=loader, __builtins__=builtins)
    sys.modules["__main__"] = module
    with io.open_code(absolute) as file:
        code = compile(file.read(), absolute, "exec", dont_inherit=True)
    exec(code, vars(module))


def _execute_module(name: str) -> None:
    _replace_first_path([os.getcwd()])
    sys.argv[0] = "-m"  # until the module's file is known
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _replace_first_path(folders: list[str]) -> None:
    """Search modules where Python would, in place of where this command was found."""
    if not sys.flags.safe_path:  # else there is no such entry
        sys.path[:1] = folders


def _from_script_on(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without the frames of this file and of runpy."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    return traceback
