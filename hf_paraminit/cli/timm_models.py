"""Building the timm model that a command line names."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from torch import nn

from hf_paraminit.cli.arguments import count, json_object, positive
from hf_paraminit.errors import ParamInitError
from hf_paraminit.hooks.timm import create_model
from hf_paraminit.initializers.suggest import did_you_mean

# What constructors of models raise when an argument does not suit them; there is no common class.
_HOST_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def add_model_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add MODEL and what `timm.create_model` should know about it; the verb may offer something in place of MODEL."""
    nargs = "?" if optional else None
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help="any name that timm.create_model takes")
    parser.add_argument("--num-classes", type=count, metavar="N", help="outputs of the classifier")
    parser.add_argument("--in-chans", type=positive, metavar="N", help="channels of the input images")
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of the input images, where the model asks")
    parser.add_argument(
        "--model-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="further arguments of timm.create_model, as '{\"drop_rate\": 0.1}'",
    )


def build_model(arguments: argparse.Namespace, **init: Any) -> nn.Module:
    """Build the model.

    Args:
        arguments: with the attributes of `add_model_arguments`.
        **init: `init` and `init_kwargs`, if weights are to be predicted.

    Raises:
        ParamInitError: timm has no such model, or cannot build it with these arguments.
    """
    _require_known(arguments.model)
    sizes = {name: getattr(arguments, name) for name in ("num_classes", "in_chans", "img_size")}
    model_kwargs = {**arguments.model_kwargs, **{name: value for name, value in sizes.items() if value is not None}}
    with host_errors(f"timm could not build {arguments.model!r}", OSError):
        return create_model(arguments.model, **init, **model_kwargs)


@contextmanager
def host_errors(attempt: str, *more: type[Exception]) -> Iterator[None]:
    """Report what timm raises as a failure of the command, unless it is one of ours already.

    Args:
        attempt: what was attempted, the beginning of the message.
        *more: classes that count as timm's beside the usual ones.
    """
    try:
        yield
    except ParamInitError:
        raise
    except (*_HOST_ERRORS, *more) as error:
        raise ParamInitError(f"{attempt}: {error or type(error).__name__} ({type(error).__name__})") from error


def _require_known(name: str) -> None:
    """Refuse unknown names of the registry; names with a source (`hf-hub:`) and paths are timm's to judge."""
    architecture = name.partition(".")[0]
    if ":" not in name and "/" not in name and not timm.is_model(architecture):
        raise ParamInitError(
            f"timm {timm.__version__} has no model {name!r}.{did_you_mean(architecture, timm.list_models())} "
            "timm.list_models('*') lists all names."
        )
