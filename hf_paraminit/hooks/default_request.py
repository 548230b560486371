"""The request for models that are built without `init=`: of a `default_init` block, or of the whole process.

A process gets one from the launcher `paraminit run`, or from the environment variables that the launcher also exports,
so that child processes which import the package follow it. It goes to the outermost model that is being built only:
parts of that model, and models that an initializer builds for itself, are left alone.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hf_paraminit.errors import InitializerConfigError, UnknownInitializerError
from hf_paraminit.hooks.request import SCOPES, InitRequest
from hf_paraminit.initializers.base import is_predicting
from hf_paraminit.initializers.suggest import did_you_mean

FIRST = "first"
DEFAULT_SCOPES = (*SCOPES, FIRST)

INIT_VARIABLE = "HF_PARAMINIT_INIT"
KWARGS_VARIABLE = "HF_PARAMINIT_INIT_KWARGS"
SCOPE_VARIABLE = "HF_PARAMINIT_SCOPE"


class DefaultRequest:
    """What to ask for where a model is built without `init=`.

    Args:
        init: what `hf_paraminit.initialize` takes, but not None.
        init_kwargs: settings of the initializer.
        scope: "missing", "all" or "head" as in `init_kwargs`; "first" is "missing" for the first model only. None
            stands for the scope in `init_kwargs`, or "missing".

    Raises:
        UnknownInitializerError: no such initializer or variant.
        InitializerConfigError: settings it does not take, another scope, or two of them.
    """

    def __init__(self, init: Any, init_kwargs: Mapping[str, Any] | None = None, scope: str | None = None) -> None:
        self._init = init
        self._init_kwargs = _with_scope(init_kwargs, scope)
        self._first_only = scope == FIRST
        self._lock = threading.Lock()
        self._claimed = False
        self._new_request()  # so that faults show now, before any model is built

    def claim(self) -> InitRequest | None:
        """The request for a model that is about to be built; None after the first one under the scope "first"."""
        with self._lock:
            is_first, self._claimed = not self._claimed, True
        return self._new_request() if is_first or not self._first_only else None

    def _new_request(self) -> InitRequest | None:
        """One object per model: an initializer remembers what it did last."""
        return InitRequest.from_arguments(self._init, self._init_kwargs)


def _with_scope(init_kwargs: Mapping[str, Any] | None, scope: str | None) -> Mapping[str, Any] | None:
    if scope is None or (init_kwargs is not None and not isinstance(init_kwargs, Mapping)):
        return init_kwargs
    if scope not in DEFAULT_SCOPES:
        raise InitializerConfigError(
            f"scope must be one of {', '.join(DEFAULT_SCOPES)}; found {scope!r}."
            f"{did_you_mean(str(scope), DEFAULT_SCOPES)}"
        )
    settings = dict(init_kwargs or {})
    if "scope" in settings:
        raise InitializerConfigError(
            f"scope={scope!r} and init_kwargs['scope']={settings['scope']!r} are both given; leave one out."
        )
    return {**settings, "scope": SCOPES[0] if scope == FIRST else scope}


class _NotGiven:
    """Stands for "nothing said here", where None says "no request"."""


_NOT_GIVEN = _NotGiven()
_of_block: ContextVar[DefaultRequest | _NotGiven | None] = ContextVar("hf_paraminit_default", default=_NOT_GIVEN)
_of_process: DefaultRequest | _NotGiven | None = _NOT_GIVEN
_process_lock = threading.RLock()


def claim_default() -> InitRequest | None:
    """The default request for a model that is about to be built, or None.

    Raises:
        UnknownInitializerError: the environment names no known initializer.
        InitializerConfigError: the environment holds settings or a scope that cannot be used.
    """
    if is_predicting():
        return None
    default = _of_block.get()
    if isinstance(default, _NotGiven):
        default = _default_of_process()
    return None if default is None else default.claim()


@contextmanager
def default_request(default: DefaultRequest | None) -> Iterator[None]:
    """Make this the default of the block, in this thread or task only; None leaves its models to their library."""
    token = _of_block.set(default)
    try:
        yield
    finally:
        _of_block.reset(token)


def set_default_of_process(default: DefaultRequest | None) -> None:
    """Make this the default of all threads, whatever the environment says; None leaves models to their library."""
    global _of_process
    with _process_lock:
        _of_process = default


def process_may_have_default() -> bool:
    """Whether a default of the process is set or named in the environment; its values are checked at first use."""
    if isinstance(_of_process, _NotGiven):
        return bool(os.environ.get(INIT_VARIABLE))
    return _of_process is not None


def _default_of_process() -> DefaultRequest | None:
    global _of_process
    with _process_lock:
        if isinstance(_of_process, _NotGiven):
            _of_process = default_from_environment()
        return _of_process


def default_from_environment() -> DefaultRequest | None:
    """The default request that the environment variables describe; None where HF_PARAMINIT_INIT is absent or empty.

    Raises:
        UnknownInitializerError: HF_PARAMINIT_INIT names no known initializer or variant.
        InitializerConfigError: one of the other two cannot be used; the message names the variable.
    """
    init = os.environ.get(INIT_VARIABLE)
    if not init:
        return None
    scope = os.environ.get(SCOPE_VARIABLE) or None
    if scope is not None and scope not in DEFAULT_SCOPES:
        raise InitializerConfigError(
            f"The environment variable {SCOPE_VARIABLE} must be one of {', '.join(DEFAULT_SCOPES)}; found {scope!r}."
            f"{did_you_mean(scope, DEFAULT_SCOPES)}"
        )
    init_kwargs = _kwargs_from_environment()
    try:
        return DefaultRequest(init, init_kwargs, scope)
    except UnknownInitializerError as error:
        raise UnknownInitializerError(f"The environment variable {INIT_VARIABLE} is {init!r}: {error}") from error
    except InitializerConfigError as error:
        raise InitializerConfigError(
            f"The environment variables {INIT_VARIABLE}={init!r} and {KWARGS_VARIABLE}={json.dumps(init_kwargs)!r} "
            f"cannot be used: {error}"
        ) from error


def _kwargs_from_environment() -> dict[str, Any]:
    text = os.environ.get(KWARGS_VARIABLE) or "{}"
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InitializerConfigError(
            f"The environment variable {KWARGS_VARIABLE} must hold a JSON object; {text!r} is not valid JSON: {error}."
        ) from error
    if not isinstance(value, dict):
        raise InitializerConfigError(f"The environment variable {KWARGS_VARIABLE} must hold a JSON object, not {text}.")
    return value


def export_to_environment(init: str, init_kwargs: Mapping[str, Any], scope: str | None) -> None:
    """Let child processes that import the package follow the same request."""
    os.environ[INIT_VARIABLE] = init
    os.environ[KWARGS_VARIABLE] = json.dumps(init_kwargs)
    if scope is None:
        os.environ.pop(SCOPE_VARIABLE, None)
    else:
        os.environ[SCOPE_VARIABLE] = scope
