"""`init=` and `init_kwargs=` for `timm.create_model`.

`create_model` looks its helpers up by name in `timm.models._factory` when it is called. Replacing two of them there
reaches every caller, also those that imported `create_model` before us, and keeps the request out of the arguments that
timm stores with a model. A third helper, `timm.models._builder.load_pretrained`, tells which parameters a checkpoint
provides. Nothing here imports timm before its user does.
"""

import functools
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hf_paraminit.hooks.default_request import claim_default, default_request
from hf_paraminit.hooks.patching import Change, HostPatch, Rebinding, Replacement
from hf_paraminit.hooks.request import InitRequest

MODELS = "timm.models"
FACTORY = "timm.models._factory"
BUILDER = "timm.models._builder"
ARGUMENTS = ("init", "init_kwargs")


def create_model(
    model_name: str, *args: Any, init: Any = None, init_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """`timm.create_model` with `init=`, whether or not the hook is installed.

    Args:
        model_name: as for timm.
        *args: as for timm.
        init: what `hf_paraminit.initialize` takes; None leaves everything to timm.
        init_kwargs: settings of the initializer; also `scope` ("missing", the default, writes only what a checkpoint
            did not provide; "all" writes everything, "head" of the missing only the classifier) and `distributed` (see
            `initialize`).
        **kwargs: as for timm.
    """
    import timm

    with TIMM.scoped():
        return timm.create_model(model_name, *args, init=init, init_kwargs=init_kwargs, **kwargs)


class RequestedName(str):
    """A resolved model name that carries the request from one helper of `create_model` to the next.

    It also survives `timm.models.resolve_model_input_args`, which hands the resolved name back to the caller.
    """

    request: InitRequest

    def __new__(cls, name: str, request: InitRequest) -> "RequestedName":
        self = super().__new__(cls, name)
        self.request = request
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "RequestedName":
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # timm may store the name with a model, whose file must open without this package


class CheckpointRecord:
    """The parameters that checkpoints provided while one model was being built."""

    def __init__(self) -> None:
        self._provided: dict[int, Tensor] = {}  # by identity: feature wrappers rename parameters, but keep the objects

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Note what `load_state_dict` finds for the model in this block."""
        handle = model.register_load_state_dict_post_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, model: nn.Module, incompatible_keys: Any) -> None:
        missing = set(incompatible_keys.missing_keys)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name not in missing:
                self._provided[id(parameter)] = parameter

    def missing_names(self, model: nn.Module) -> list[str]:
        """Parameters of the finished model that no checkpoint provided."""
        if not self._provided:
            return _resized_classifier(model)
        return [name for name, parameter in model.named_parameters() if id(parameter) not in self._provided]


_active_record: ContextVar[CheckpointRecord | None] = ContextVar("hf_paraminit_checkpoint_record", default=None)


def plan_changes(models: types.ModuleType) -> Sequence[Change]:
    """What to change in this timm; warns once when only the coarser way is left.

    Args:
        models: the imported package `timm.models`.
    """
    factory, builder = sys.modules.get(FACTORY), sys.modules.get(BUILDER)
    changes: list[Change] = []
    if builder is not None and hasattr(builder, "load_pretrained"):
        changes.append(Replacement.of(builder, "load_pretrained", _recording_load_pretrained))
    if factory is not None and _looks_helpers_up(factory):
        changes.append(Replacement.of(factory, "_resolve_model_source", _resolving))
        changes.append(Replacement.of(factory, "model_entrypoint", _initializing_entrypoint))
        if hasattr(factory, "load_checkpoint"):
            changes.append(Replacement.of(factory, "load_checkpoint", _warning_load_checkpoint))
        return changes
    warnings.warn(
        "This timm release builds models in another way than hf_paraminit knows. timm.create_model(init=...) works, "
        "but not where a private reference to it is kept; hf_paraminit.create_model always works.",
        stacklevel=2,
    )
    return [*changes, Rebinding(models.create_model, _create_model_with_init(models.create_model))]


TIMM = HostPatch(MODELS, plan_changes)


def _looks_helpers_up(factory: types.ModuleType) -> bool:
    """Whether `create_model` still finds both helpers by name, with the arguments that the wrappers rely on."""
    resolve = getattr(factory, "_resolve_model_source", None)
    create = getattr(factory, "create_model", None)
    if resolve is None or create is None or not hasattr(factory, "model_entrypoint"):
        return False
    code = inspect.unwrap(create).__code__
    known_arguments = list(inspect.signature(resolve).parameters)[:3] == ["model_name", "pretrained_cfg", "kwargs"]
    return known_arguments and {"_resolve_model_source", "model_entrypoint"} <= set(code.co_names)


def _resolving(
    original: Callable[..., tuple[str, Any, dict[str, Any]]],
) -> Callable[..., tuple[str, Any, dict[str, Any]]]:
    """Take the request out of the arguments, and hand it on with the resolved name."""

    @functools.wraps(original)
    def resolve_model_source(
        model_name: str, pretrained_cfg: Any, kwargs: dict[str, Any], *args: Any, **more: Any
    ) -> tuple[str, Any, dict[str, Any]]:
        init, init_kwargs = kwargs.get("init"), kwargs.get("init_kwargs")
        request = InitRequest.from_arguments(init, init_kwargs) or getattr(model_name, "request", None)
        own = {key: value for key, value in kwargs.items() if key not in ARGUMENTS}
        name, pretrained_cfg, resolved = original(model_name, pretrained_cfg, own, *args, **more)
        # what is left of the two keys now came from a repository's config.json, which must not start a prediction
        _drop_arguments(resolved)
        _drop_arguments(resolved.get("pretrained_model_args") or {})
        return (name if request is None else RequestedName(name, request)), pretrained_cfg, resolved

    return resolve_model_source


def _drop_arguments(kwargs: dict[str, Any]) -> None:
    for key in ARGUMENTS:
        kwargs.pop(key, None)


def _initializing_entrypoint(
    original: Callable[..., Callable[..., nn.Module]],
) -> Callable[..., Callable[..., nn.Module]]:
    """Return an entry point that also fulfils the request that came with the name, or else the default one."""

    @functools.wraps(original)
    def model_entrypoint(model_name: str, *args: Any, **kwargs: Any) -> Callable[..., nn.Module]:
        default = claim_default()
        request = getattr(model_name, "request", default)
        if request is None:
            return original(model_name, *args, **kwargs)
        build = original(str(model_name), *args, **kwargs)
        initialize_whole = default_request(None)(_build_and_initialize)  # parts belong to the request for the whole
        return functools.partial(initialize_whole, build, str(model_name), request)

    return model_entrypoint


def _build_and_initialize(
    build: Callable[..., nn.Module], name: str, request: InitRequest, /, **kwargs: Any
) -> nn.Module:
    added = request.initializer.host_arguments(build.__module__, kwargs)
    record = CheckpointRecord()
    token = _active_record.set(record)
    try:
        model, deferred = request.construct(lambda: build(**kwargs, **added))
    finally:
        _active_record.reset(token)
    only_missing = kwargs.get("pretrained", False) and request.scope != "all"
    report = request.fulfil(model, record.missing_names(model) if only_missing else None, name, deferred)
    if added:
        message = f"built with {', '.join(f'{key}={value}' for key, value in added.items())}, which was not given"
        model._hf_paraminit = replace(report, notes=(*report.notes, message))  # type: ignore[assignment]
    return model


def _recording_load_pretrained(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def load_pretrained(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        record = _active_record.get()
        if record is None:
            return original(model, *args, **kwargs)
        with record.watching(model):
            return original(model, *args, **kwargs)

    return load_pretrained


def _warning_load_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
    """Say so when the `checkpoint_path` of `create_model` is loaded over a prediction."""

    @functools.wraps(original)
    def load_checkpoint(model: nn.Module, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(model, checkpoint_path, *args, **kwargs)
        report = getattr(model, "_hf_paraminit", None)
        if report is not None and report.predicted:
            message = f"the checkpoint {checkpoint_path} was loaded over the predicted values"
            warnings.warn(f"init={report.initializer!r} had little effect: {message}.", stacklevel=3)
            model._hf_paraminit = replace(report, notes=(*report.notes, message))
        return result

    return load_checkpoint


def _create_model_with_init(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A whole `create_model` with the two arguments, for a timm whose parts cannot be replaced."""

    @functools.wraps(original)
    def create_model_with_init(
        model_name: str, *args: Any, init: Any = None, init_kwargs: Any = None, **kwargs: Any
    ) -> nn.Module:
        default = claim_default()
        request = InitRequest.from_arguments(init, init_kwargs) or default
        if request is None:
            return original(model_name, *args, **kwargs)
        arguments = inspect.signature(original).bind(model_name, *args, **kwargs)
        checkpoint_path = arguments.arguments.pop("checkpoint_path", None)
        further = arguments.arguments.pop("kwargs", {})
        with default_request(None):
            model = _build_and_initialize(original, str(model_name), request, **arguments.arguments, **further)
        if checkpoint_path:
            load_checkpoint = sys.modules[MODELS].load_checkpoint
            _warning_load_checkpoint(load_checkpoint)(model, checkpoint_path)
        return model

    return create_model_with_init


def _resized_classifier(model: nn.Module) -> list[str]:
    """Classifier tensors whose class count differs from the checkpoint's.

    For loaders of foreign formats, which bypass `load_state_dict` and report nothing: they read everything else.
    """
    pretrained_cfg = getattr(model, "pretrained_cfg", None) or {}
    classifiers = pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    tensors = {f"{classifier}.{kind}" for classifier in classifiers for kind in ("weight", "bias")}
    num_classes = pretrained_cfg.get("num_classes")
    return [name for name, p in model.named_parameters() if name in tensors and p.shape[0] != num_classes]
