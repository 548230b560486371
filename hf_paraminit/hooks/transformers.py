"""`init=` and `init_kwargs=` for `from_config` and `from_pretrained` of Transformers' Auto and concrete classes.

All of them end in two class methods of `PreTrainedModel`, which are wrapped: the library builds and loads a model as
always, then the parameters that no checkpoint provided are predicted. On the way there, Auto classes copy the arguments
of `from_pretrained` and offer them to the model's config, so the request is led around that. Nothing here imports
transformers before its user does, and nothing that is stored in a repository starts a prediction.
"""

import copy
import functools
import importlib
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_paraminit import __version__
from hf_paraminit.errors import InitializerConfigError, ParamInitError, PredictionError, TracingError
from hf_paraminit.hooks.default_request import claim_default, default_request
from hf_paraminit.hooks.patching import Change, HostPatch, Replacement
from hf_paraminit.hooks.request import InitRequest
from hf_paraminit.initializers.deferred_fills import DeferredFills
from hf_paraminit.initializers.report import InitReport

MODELING = "transformers.modeling_utils"
AUTO_FACTORY = "transformers.models.auto.auto_factory"
TIMM_WRAPPER_MODELING = "transformers.models.timm_wrapper.modeling_timm_wrapper"
ARGUMENTS = ("init", "init_kwargs")
RECORD_KEY = "hf_paraminit"
NAMES_SHOWN = 10

# Transformers' two wrappers of timm models, by `config.model_type`, and the attribute that holds the timm model.
TIMM_MODEL_ATTRIBUTE = {"timm_wrapper": "timm_model", "timm_backbone": "_backbone"}

T = TypeVar("T")


def from_config(
    model_class: Any, config: Any, *, init: Any = None, init_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """`model_class.from_config` with `init=`, whether or not the hook is installed.

    Args:
        model_class: an Auto class (`AutoModelForImageClassification`) or a concrete class of Transformers.
        config: the configuration to build from.
        init: what `hf_paraminit.initialize` takes; None leaves everything to Transformers.
        init_kwargs: settings of the initializer; also `scope` and `record` (see `from_pretrained`) and `distributed`
            (see `initialize`).
        **kwargs: as for Transformers.
    """
    with TRANSFORMERS.scoped():
        build = getattr(model_class, "from_config", None) or model_class._from_config  # only Auto classes have both
        return build(config, init=init, init_kwargs=init_kwargs, **kwargs)


def from_pretrained(
    model_class: Any,
    source: Any,
    *args: Any,
    init: Any = None,
    init_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """`model_class.from_pretrained` with `init=`, whether or not the hook is installed.

    Args:
        model_class: an Auto class or a concrete class of Transformers.
        source: a repository or a folder, as for Transformers.
        *args: as for Transformers.
        init: what `hf_paraminit.initialize` takes; None leaves everything to Transformers.
        init_kwargs: settings of the initializer; also `scope` ("missing", the default, writes only what the checkpoint
            did not provide; "all" writes everything, "head" of the missing only the classifier), `record` (True stores
            where the values came from in the model's config, under the key `hf_paraminit`) and `distributed` (see
            `initialize`).
        **kwargs: as for Transformers.

    Returns:
        The model; with `output_loading_info=True` the model and Transformers' record of what was loaded.
    """
    with TRANSFORMERS.scoped(), AUTO_CLASSES.scoped():
        return model_class.from_pretrained(source, *args, init=init, init_kwargs=init_kwargs, **kwargs)


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A request, and whether the model's config shall tell of it."""

    request: InitRequest
    record: bool

    @classmethod
    def from_arguments(cls, init: Any, init_kwargs: Any) -> "ModelRequest | None":
        """The request, or None when there is none, or when a larger model that has one is being built around this.

        Without `init` it may be on its way from an Auto class, or be the default one.
        """
        if _inside_request.get():
            return None
        if init is None and (on_its_way := _request_on_its_way.get()) is not None:
            return on_its_way
        default = claim_default()
        if init is None:
            return None if default is None else cls(request=default, record=False)
        record = False
        if isinstance(init_kwargs, Mapping):
            init_kwargs = dict(init_kwargs)
            record = init_kwargs.pop("record", False)
        if not isinstance(record, bool):
            raise InitializerConfigError(f"record must be True or False, found {record!r}.")
        request = InitRequest.from_arguments(init, init_kwargs)
        return None if request is None else cls(request=request, record=record)

    @property
    def identifier(self) -> str:
        """What messages call the initializer."""
        return self.request.initializer.identifier

    def for_fsdp(self) -> "ModelRequest | None":
        """FSDP will copy the model of the first process of a machine to the others: only that one predicts."""
        if not sys.modules[MODELING].is_local_dist_rank_0():
            return None
        return replace(self, request=replace(self.request, distributed="off"))

    def fulfil(self, model: Any, names: Sequence[str] | None, deferred: DeferredFills | None = None) -> InitReport:
        """Write into the model, into a wrapped timm model under timm's own names.

        Of a model that also takes text, and so cannot be traced with images alone, the image encoder is written.

        Args:
            model: the finished model.
            names: parameters that may be written; None means all.
            deferred: random draws that Transformers left out while it built the model.
        """
        _refuse_unwritable(model, names)
        attribute = TIMM_MODEL_ATTRIBUTE.get(model.config.model_type)
        if attribute is None:
            try:
                report = self.request.fulfil(model, names, type(model).__name__, deferred)
            except ParamInitError as error:
                if not _is_tracing_failure(error):
                    raise
                report = self._fulfil_for_image_encoder(model, names, error)
        else:
            prefix = f"{attribute}."
            inner_names = None if names is None else [name.removeprefix(prefix) for name in names]
            report = self.request.fulfil(getattr(model, attribute), inner_names, type(model).__name__, deferred)
            report = _with_prefix(report, prefix)
            model._hf_paraminit = report
        if self.record and report.predicted:
            setattr(model.config, RECORD_KEY, _provenance(report))
        return report

    def _fulfil_for_image_encoder(self, model: Any, names: Sequence[str] | None, error: ParamInitError) -> InitReport:
        """Write into the one part that takes images alone, and account for the other offered parameters as kept."""
        path = _image_encoder_path(model)
        if path is None:
            raise _without_image_encoder(model, self.identifier, error) from error
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        offered = list(sizes) if names is None else names
        prefix = f"{path}."
        inner_names = [name.removeprefix(prefix) for name in offered if name.startswith(prefix)]
        model_name = f"{type(model).__name__}.{path}"
        report = _with_prefix(self.request.fulfil(model.get_submodule(path), inner_names, model_name), prefix)
        outside = [name for name in offered if not name.startswith(prefix)]
        predicted = [name for name in offered if name in report.predicted]
        report = replace(
            report,
            kept=report.kept | dict.fromkeys(outside, f"outside the image encoder {path!r}"),
            coverage_tensors=len(predicted) / max(1, len(offered)),
            coverage_elements=sum(map(sizes.__getitem__, predicted)) / max(1, sum(map(sizes.__getitem__, offered))),
            notes=(*report.notes, f"{type(model).__name__} takes more than images, so only {path!r} was traced"),
        )
        model._hf_paraminit = report
        return report


_inside_request: ContextVar[bool] = ContextVar("hf_paraminit_inside_request", default=False)
_request_on_its_way: ContextVar[ModelRequest | None] = ContextVar("hf_paraminit_request_on_its_way", default=None)


@contextmanager
def _set_to(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def parts_left_alone() -> Iterator[None]:
    """Composite models build their parts with the same methods; these belong to the request for the whole."""
    with _set_to(_inside_request, True), default_request(None):
        yield


def plan_changes(modeling: types.ModuleType) -> Sequence[Change]:
    """What to change in this release of Transformers; warns once when it is organised in another way.

    Args:
        modeling: the imported module `transformers.modeling_utils`.
    """
    if not _has_known_methods(modeling):
        warnings.warn(
            "This Transformers release builds models in another way than hf_paraminit knows, so init= is not available "
            "there. Build the model without it and call hf_paraminit.initialize(model, ...).",
            stacklevel=2,
        )
        return []
    return [
        Replacement.of(modeling.PreTrainedModel, "_from_config", _initializing_from_config),
        Replacement.of(modeling.PreTrainedModel, "from_pretrained", _initializing_from_pretrained),
    ]


def plan_auto_changes(factory: types.ModuleType) -> Sequence[Change]:
    """Lead a request around the config that an Auto class loads.

    Args:
        factory: the imported module with the base of the Auto classes.
    """
    auto_class = getattr(factory, "_BaseAutoModelClass", None)
    if auto_class is None or not isinstance(vars(auto_class).get("from_pretrained"), classmethod):
        return []
    return [Replacement.of(auto_class, "from_pretrained", _detouring_from_pretrained)]


def plan_timm_wrapper_changes(modeling: types.ModuleType) -> Sequence[Change]:
    """Refuse a request that hides in the timm arguments which a config stores.

    Args:
        modeling: the imported module with Transformers' wrapper of timm models.
    """
    attribute = "_create_timm_model_with_error_handling"
    return [Replacement.of(modeling, attribute, _refusing_stored_request)] if hasattr(modeling, attribute) else []


TRANSFORMERS: HostPatch = HostPatch(MODELING, plan_changes)
AUTO_CLASSES: HostPatch = HostPatch(AUTO_FACTORY, plan_auto_changes)
TIMM_WRAPPER: HostPatch = HostPatch(TIMM_WRAPPER_MODELING, plan_timm_wrapper_changes)


def _has_known_methods(modeling: types.ModuleType) -> bool:
    model_class = getattr(modeling, "PreTrainedModel", type)
    return all(isinstance(vars(model_class).get(name), classmethod) for name in ("_from_config", "from_pretrained"))


def _initializing_from_config(original: Any) -> Any:
    build = original.__func__

    @functools.wraps(build)
    def _from_config(cls: Any, config: Any, *, init: Any = None, init_kwargs: Any = None, **kwargs: Any) -> nn.Module:
        request = ModelRequest.from_arguments(init, init_kwargs)
        if request is None:
            return build(cls, config, **kwargs)
        with parts_left_alone():
            model, deferred = request.request.construct(lambda: build(cls, config, **kwargs))
            if kwargs.get("pretrained"):
                deferred.finish()
                warnings.warn(
                    f"init={request.identifier!r} had no effect: {cls.__name__} loads pretrained timm weights, which "
                    "provide every parameter.",
                    stacklevel=2,
                )
            else:
                request.fulfil(model, None, deferred)
        return model

    return classmethod(_from_config)


def _initializing_from_pretrained(original: Any) -> Any:
    load = original.__func__

    @functools.wraps(load)
    def from_pretrained(cls: Any, *args: Any, init: Any = None, init_kwargs: Any = None, **kwargs: Any) -> Any:
        request = ModelRequest.from_arguments(init, init_kwargs)
        if request is None:
            return load(cls, *args, **kwargs)
        with parts_left_alone():
            model, info = load(cls, *args, **{**kwargs, "output_loading_info": True})
            if sys.modules[MODELING].is_fsdp_enabled():
                request = request.for_fsdp()
            if request is not None:
                missing = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
                _initialize_loaded(model, missing, request)
        return (model, info) if kwargs.get("output_loading_info") else model

    return classmethod(from_pretrained)


def _detouring_from_pretrained(original: Any) -> Any:
    """Take the request out of the arguments, and hand it to the class that the Auto class chooses.

    The Auto class would deep-copy it with its predictor, and a config with an attribute called `init` would absorb it.
    """
    load = original.__func__

    @functools.wraps(load)
    def from_pretrained(cls: Any, *args: Any, init: Any = None, init_kwargs: Any = None, **kwargs: Any) -> Any:
        if init is not None and not _has_known_methods(importlib.import_module(MODELING)):
            return load(cls, *args, init=init, **kwargs)  # nobody would take the request: let Transformers complain
        with _set_to(_request_on_its_way, ModelRequest.from_arguments(init, init_kwargs)):
            return load(cls, *args, **kwargs)

    return classmethod(from_pretrained)


def _refusing_stored_request(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(original)
    def create_timm_model(config: Any, **model_kwargs: Any) -> nn.Module:
        stored = [key for key in ARGUMENTS if key in model_kwargs]
        if stored:
            raise InitializerConfigError(
                f"The config of {config.architecture} has {' and '.join(map(repr, stored))} in its `model_args`, which "
                "would be saved with the model and predict again at every load. Remove it there, and pass init= to "
                "from_config or from_pretrained."
            )
        return original(config, **model_kwargs)

    return create_timm_model


def _initialize_loaded(model: nn.Module, missing: set[str], request: ModelRequest) -> None:
    """Predict what the checkpoint did not provide, and leave nothing uninitialised.

    Args:
        model: a model whose checkpoint has been loaded.
        missing: names in its state dict that the checkpoint had no value of the right shape for.
        request: what to predict with.
    """
    unprovided = _unprovided_parameters(model, missing)
    _fill_unwritten(model, missing, unprovided)
    wanted = unprovided if request.request.scope != "all" else [name for name, _ in model.named_parameters()]
    names = _without_memory(model, wanted, request)
    if wanted and not names:
        return
    report = request.fulfil(model, names)
    if unprovided:
        filled = [name for name in unprovided if name in report.predicted]
        # next to Transformers' own report, under its settings of verbosity
        logging.getLogger(MODELING).warning(
            "init=%r filled %d of the %d parameters that were not in the checkpoint%s",
            request.identifier,
            len(filled),
            len(unprovided),
            f": {_enumeration(filled)}" if filled else "",
        )


def _unprovided_parameters(model: nn.Module, missing: set[str]) -> list[str]:
    """Parameters without a checkpoint value under any of their names.

    The declared targets of weight tying do not count: they are reported missing just when their source is.
    """
    tied_targets = getattr(model, "all_tied_weights_keys", None) or {}
    provided = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in missing and name not in tied_targets
    }
    return [name for name, parameter in model.named_parameters() if id(parameter) not in provided]


def _fill_unwritten(model: nn.Module, missing: set[str], unprovided: Iterable[str]) -> None:
    """Give tensors that Transformers allocated but did not initialise the values they have in a newly built model.

    Transformers builds on the meta device and afterwards initialises the kinds of layers it knows. Its wrapper of timm
    models knows few, so tokens, tables and layer scales of a new model, and a few tensors of other models, would hold
    whatever was in memory.
    """
    if not missing:
        return
    stored = model.state_dict().keys()
    candidates: dict[str, Tensor] = {name: model.get_parameter(name) for name in unprovided}
    candidates |= {name: buffer for name, buffer in model.named_buffers() if name in missing or name not in stored}
    unwritten = {name: tensor for name, tensor in candidates.items() if _is_unwritten(tensor)}
    if not unwritten:
        return
    with torch.random.fork_rng(devices=[]):
        model_class: Any = type(model)
        new = model_class._from_config(copy.deepcopy(model.config))
    values = dict(new.named_parameters()) | dict(new.named_buffers())
    with torch.no_grad():
        for name, tensor in unwritten.items():
            if name in values and values[name].shape == tensor.shape:
                tensor.copy_(values[name])


def _is_unwritten(tensor: Tensor) -> bool:
    """Whether no operation has changed the tensor in place since it was allocated."""
    return not tensor.is_meta and not tensor.is_inference() and tensor._version == 0


def _without_memory(model: nn.Module, names: Iterable[str], request: ModelRequest) -> list[str]:
    """The names that can be written; warns about parameters that are still on the meta device and should not be."""
    parameters = dict(model.named_parameters())
    is_offloaded = "disk" in (getattr(model, "hf_device_map", None) or {}).values()
    names = list(names)
    suspects = names if is_offloaded else parameters  # loaded parameters on disk are on the meta device, too
    stranded = [name for name in suspects if parameters[name].is_meta]
    if stranded:
        warnings.warn(
            f"init={request.identifier!r} cannot fill {_enumeration(stranded)} of {type(model).__name__}: on the meta "
            "device after loading, because the device map puts it on disk. Keep it on another device, or initialize "
            "the model before it is offloaded.",
            stacklevel=4,
        )
    return [name for name in names if not parameters[name].is_meta]


def _refuse_unwritable(model: nn.Module, names: Iterable[str] | None) -> None:
    """Raise for parameters whose memory does not hold plain numbers of the declared shape.

    Raises:
        PredictionError: quantized parameters, or parameters that DeepSpeed has split over processes.
    """
    parameters = dict(model.named_parameters())
    offered = parameters if names is None else {name: parameters[name] for name in names}
    split = [name for name, parameter in offered.items() if hasattr(parameter, "ds_shape")]
    quantizer = getattr(model, "hf_quantizer", None)
    packed = [name for name, parameter in offered.items() if quantizer is not None and not _is_plain(parameter)]
    for faults, state, advice in (
        (split, "split over processes by DeepSpeed ZeRO-3", "initialize and save the model first, then load it there"),
        (packed, f"quantized by {type(quantizer).__name__}", "initialize and save the model first, then quantize it"),
    ):
        if faults:
            raise PredictionError(
                f"Cannot initialize {type(model).__name__}: {_enumeration(faults)} {state}; expected plain "
                f"floating-point parameters. Leave init= out here, or {advice}."
            )


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.dtype.itemsize > 1


def _is_tracing_failure(error: ParamInitError) -> bool:
    """Whether the graph could not be read, on this rank or on the one that predicts for all, as the message then says.

    All ranks must agree on the answer, because they go on together.
    """
    return isinstance(error, TracingError) or f"failed with {TracingError.__name__}" in str(error)


def _without_image_encoder(model: Any, identifier: str, error: ParamInitError) -> ParamInitError:
    """The error that helps: about the input of the model where that is not an image, else the one of the tracing."""
    if model.main_input_name == "pixel_values":
        return error
    return TracingError(
        f"Cannot initialize {type(model).__name__} with {identifier!r}, which reads the graph of a pass with images: "
        f"the model takes {model.main_input_name!r}, and no single part of it takes images alone. Build it without "
        "init=; under `paraminit run` or in a default_init block, inside `with hf_paraminit.default_init(None):`."
    )


def _image_encoder_path(model: Any) -> str | None:
    """The part of a composite model that takes images, by the declarations of Transformers' classes; None if not one.

    A part is a model of its own; it counts when neither it nor a model inside it has another main input than images.
    """
    parts = {path: part for path, part in model.named_modules() if hasattr(part, "main_input_name")}
    textual = [path for path, part in parts.items() if part.main_input_name != "pixel_values"]
    encoders: list[str] = []
    for path in parts:
        has_text = any(other == path or other.startswith(f"{path}.") or not path for other in textual)
        is_inside = any(path.startswith(f"{encoder}.") for encoder in encoders)
        if not has_text and not is_inside:
            encoders.append(path)
    return encoders[0] if len(encoders) == 1 and encoders[0] else None


def _with_prefix(report: InitReport, prefix: str) -> InitReport:
    def prefixed(fates: dict[str, str]) -> dict[str, str]:
        return {f"{prefix}{name}": fate for name, fate in fates.items()}

    return replace(
        report,
        predicted=prefixed(report.predicted),
        kept=prefixed(report.kept),
        refused=prefixed(report.refused),
    )


def _provenance(report: InitReport) -> dict[str, Any]:
    """What a config stores about the origin of its model's values."""
    fields = ("initializer", "predictor", "revision", "sha256", "seed", "coverage_tensors", "coverage_elements")
    return {**{field: getattr(report, field) for field in fields}, "version": __version__}


def _enumeration(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
