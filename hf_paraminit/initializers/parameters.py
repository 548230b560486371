"""From predicted values to written parameters: plan, check everything, then write once or not at all."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_paraminit.errors import PredictionError
from hf_paraminit.initializers.deferred_fills import DeferredFills
from hf_paraminit.initializers.shared_memory import overlapping
from hf_paraminit.initializers.suggest import did_you_mean

FAULTS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class WritePlan:
    """Which tensors of a model may be written, and under which names they are known.

    Attributes:
        model_name: class of the model, for messages.
        parameters: the offered parameters by their first name, in the model's order.
        aliases: every further name of a tied parameter -> its first name; all parameters, offered or not.
        refused: parameters that were asked for but cannot hold predicted values -> reason.
        not_offered: names of buffers and of parameters outside the request -> what they are.
        on_meta: True when every offered parameter is on the meta device, so there is nothing to write into.
    """

    model_name: str
    parameters: dict[str, nn.Parameter]
    aliases: dict[str, str]
    refused: dict[str, str]
    not_offered: dict[str, str]
    on_meta: bool

    @property
    def offered_aliases(self) -> dict[str, str]:
        """The aliases of the offered parameters only."""
        return {alias: name for alias, name in self.aliases.items() if name in self.parameters}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Checked values, ready to be copied, and what the initializer says about them."""

    values: dict[str, Tensor]
    origins: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def plan_write(
    model: nn.Module, names: Iterable[str] | None = None, deferred: Container[nn.Parameter] = ()
) -> WritePlan:
    """Work out which parameters to offer to an initializer; touches nothing.

    Args:
        model: the model to be initialized.
        names: fully qualified parameter names (any name of a tied tensor will do); None offers all.
        deferred: parameters that get memory of their own when they are written.

    Raises:
        PredictionError: no parameters, unknown names, or parameters that cannot be written (partly on meta, not yet
            materialised, quantized, sharded, expanded, or made in inference mode); all faults in one message.
    """
    if not isinstance(model, nn.Module):
        raise PredictionError(f"An initializer needs a torch.nn.Module to write into, not a {type(model).__name__}.")
    model_name = type(model).__name__
    everything, aliases = _parameters_and_aliases(model)
    if not everything:
        raise PredictionError(f"{model_name} has no parameters, so there is nothing to initialize.")
    wanted = list(everything) if names is None else _first_names(names, everything, aliases, model_name)

    ready = [name for name in wanted if everything[name] not in deferred]
    faults = {name: fault for name in ready if (fault := _unwritable(everything[name])) is not None}
    on_meta = [name for name in wanted if everything[name].is_meta]
    if len(on_meta) < len(wanted):
        faults |= dict.fromkeys(
            on_meta, "is on the meta device while others are not; materialise the whole model first"
        )
    _raise_faults(f"Cannot initialize {model_name}", faults)

    refused = {name: reason for name in wanted if (reason := _not_predicted(everything[name])) is not None}
    refused |= _refused_for_others(wanted, everything)
    offered = {name: everything[name] for name in wanted if name not in refused}
    not_offered = dict.fromkeys(everything.keys() - set(wanted), "parameter outside the offered names")
    not_offered |= {name: "buffers are never written" for name, _ in model.named_buffers(remove_duplicate=False)}
    return WritePlan(
        model_name=model_name,
        parameters=offered,
        aliases=aliases,
        refused=refused,
        not_offered=refused | not_offered,
        on_meta=bool(on_meta),
    )


def check_prediction(
    plan: WritePlan, values: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Check every predicted value against the plan before anything is written.

    Args:
        plan: what may be written.
        values: name -> tensor of exactly the parameter's shape; any floating dtype that holds finite numbers.
        source: name of the initializer, for messages.

    Returns:
        The values to write, detached, by first name; and the names whose value is refused -> reason.

    Raises:
        PredictionError: names the model does not have, wrong types, shapes or dtypes, NaN or infinity (also after the
            cast to the parameter's dtype), or tied tensors with two different values; all faults in one message.
    """
    if not isinstance(values, Mapping):
        raise PredictionError(
            f"{source} returned a {type(values).__name__} for {plan.model_name}, expected a dict of name -> tensor."
        )
    accepted: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    faults: dict[str, str] = {}
    for given_name, value in values.items():
        name = plan.aliases.get(given_name, given_name)
        if name not in plan.parameters:
            if name in plan.not_offered:
                refused[given_name] = plan.not_offered[name]
            else:
                faults[str(given_name)] = f"is no parameter of the model.{did_you_mean(str(name), plan.parameters)}"
        elif (fault := _value_fault(value, plan.parameters[name])) is not None:
            faults[given_name] = fault
        elif name in accepted and not torch.equal(accepted[name], value.detach().to(accepted[name])):
            faults[given_name] = f"is tied to {name}, but the two values differ"
        else:
            accepted[name] = value.detach()
    _raise_faults(f"{source} gave values that do not fit {plan.model_name}", faults)
    return _apart_from_parameters(accepted, plan.parameters), refused


def stage_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring checked values to the devices of their parameters.

    This is what can fail, for want of memory; so it is done for all of them before the first parameter changes.
    """
    return {name: value.to(parameters[name].device) for name, value in values.items()}


def write_values(
    parameters: Mapping[str, nn.Parameter], staged: Mapping[str, Tensor], deferred: DeferredFills | None = None
) -> None:
    """Copy staged values into the parameters: all of them, or on any failure none.

    The copies are one call into torch, which no interrupt can split and which needs no further memory.

    Args:
        parameters: name -> tensor to write into.
        staged: tensors of the same shapes on the same devices, in other dtypes if need be.
        deferred: random fills of a model that nobody has used yet; parameters whose fill still waits take the memory
            of their value instead of a copy of it where nothing else refers to either.
    """
    with torch.no_grad():
        pairs = [(parameters[name], value) for name, value in staged.items()]
        if deferred:
            pairs = [(parameter, value) for parameter, value in pairs if not deferred.adopt(parameter, value)]
        if pairs:
            torch._foreach_copy_([parameter for parameter, _ in pairs], [value for _, value in pairs])


def _parameters_and_aliases(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Distinct parameters by first name, and the further names of tied ones."""
    first_name: dict[object, str] = {}
    parameters: dict[str, nn.Parameter] = {}
    aliases: dict[str, str] = {}
    try:
        named = list(model.named_parameters(remove_duplicate=False))
    except RecursionError as error:
        raise PredictionError(
            f"{type(model).__name__} cannot be listed: a module in it contains itself, or modules are nested deeper "
            "than Python's recursion limit. Nothing was written."
        ) from error
    for name, parameter in named:
        first = first_name.setdefault(_memory_of(parameter), name)
        if first == name:
            parameters[name] = parameter
        else:
            aliases[name] = first
    return parameters, aliases


def _memory_of(parameter: nn.Parameter) -> object:
    """Equal for two parameters that are the same elements in memory, even when they are two Python objects."""
    if not _has_memory(parameter):
        return id(parameter)
    memory = parameter.untyped_storage()._cdata, parameter.storage_offset()
    return parameter.device, memory, parameter.shape, parameter.stride()


def _first_names(
    names: Iterable[str], parameters: Mapping[str, Tensor], aliases: Mapping[str, str], model_name: str
) -> list[str]:
    """The listed names in the model's order, each tied tensor once under its first name."""
    if isinstance(names, str):
        raise PredictionError(f"names must be a list of parameter names, not the single string {names!r}.")
    listed = {aliases.get(name, name): name for name in names}
    unknown = [str(name) for name in listed if name not in parameters]
    faults = {name: f"is no parameter.{did_you_mean(name, parameters)}" for name in unknown}
    _raise_faults(f"names lists what {model_name} does not have", faults)
    return [name for name in parameters if name in listed]


def _not_predicted(parameter: nn.Parameter) -> str | None:
    """Why no initializer is asked for values of this parameter, or None."""
    if not _holds_numbers(parameter):
        return f"{_short(parameter.dtype)} parameters are not predicted"
    if parameter.layout is not torch.strided:
        return f"{_short(parameter.layout)} parameters are not predicted"
    return "it has no elements" if parameter.numel() == 0 else None


def _refused_for_others(wanted: Iterable[str], everything: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Parameters that cannot be written without changing a part of another one."""
    dense = {name: parameter for name, parameter in everything.items() if _has_memory(parameter)}
    partners = overlapping(dense)
    return {name: f"shares some of its elements with {partners[name]}" for name in wanted if name in partners}


def _has_memory(parameter: nn.Parameter) -> bool:
    is_hollow = is_lazy(parameter) or _is_wrapped(parameter) or parameter.is_meta or parameter.numel() == 0
    return not is_hollow and parameter.layout is torch.strided


def _unwritable(parameter: nn.Parameter) -> str | None:
    """Why values cannot be copied into this parameter, or None when they can."""
    if is_lazy(parameter):
        return "has no shape yet; run one forward pass of the lazy module first"
    full_shape = getattr(parameter, "ds_shape", parameter.shape)  # which DeepSpeed ZeRO-3 leaves on what it splits
    if parameter.shape != full_shape:
        return (
            f"holds {parameter.numel()} elements of {tuple(full_shape)}, since DeepSpeed has split it over processes; "
            "initialize before that, or inside deepspeed.zero.GatheredParameters with distributed='off'"
        )
    if _is_wrapped(parameter) or parameter.is_quantized or _is_packed(parameter):
        return f"is a {type(parameter).__name__}; initialize before quantizing or sharding the model"
    if parameter.is_inference():
        return "was made in inference mode and is read-only; build the model outside torch.inference_mode()"
    if parameter.layout is not torch.strided:
        return None
    if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
        return "is expanded (several elements share memory); make it contiguous first"
    return None


def _is_wrapped(tensor: Tensor) -> bool:
    """Tensor subclasses that hold other tensors: sharded (DTensor) and quantized ones."""
    return is_traceable_wrapper_subclass(tensor)


def _is_packed(parameter: nn.Parameter) -> bool:
    """Quantized weights that hide behind an integer dtype and their own parameter class."""
    return type(parameter) is not nn.Parameter and not _holds_numbers(parameter)


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _value_fault(value: object, parameter: Tensor) -> str | None:
    """What is wrong with one predicted value, or None."""
    if not isinstance(value, Tensor):
        return f"expected a tensor, found a {type(value).__name__}"
    if value.layout is not torch.strided or value.is_meta or _is_wrapped(value):
        return f"expected a dense tensor with values, found {value.layout} on {value.device}"
    if value.shape != parameter.shape:
        return f"expected shape {tuple(parameter.shape)}, found {tuple(value.shape)}"
    if not _holds_numbers(value) or value.is_complex() != parameter.is_complex():
        return f"expected a dtype that converts to {_short(parameter.dtype)}, found {_short(value.dtype)}"
    if not _is_finite_in(value, parameter.dtype):
        return f"holds NaN, infinity, or numbers beyond the range of {_short(parameter.dtype)}"
    return None


def _is_finite_in(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether every element is finite and stays so when cast to `dtype`; one pass, no temporary of the same size."""
    if value.numel() == 0:
        return True
    elements = torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach()
    if elements.dtype.itemsize == 1:  # float8 has no reductions
        elements = elements.float()
    low, high = (bound.item() for bound in torch.aminmax(elements))  # NaN propagates into both
    largest = torch.finfo(dtype).max
    return -largest <= low and high <= largest


def _apart_from_parameters(values: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clone values that live in the memory of a parameter: writing one would change another before it is read."""
    written = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    return {
        name: value.clone() if value.untyped_storage().data_ptr() in written else value
        for name, value in values.items()
    }


def _raise_faults(attempt: str, faults: Mapping[str, str]) -> None:
    if not faults:
        return
    lines = [f"  {name}: {fault}" for name, fault in list(faults.items())[:FAULTS_SHOWN]]
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"  ... and {len(faults) - FAULTS_SHOWN} more")
    raise PredictionError("\n".join([f"{attempt}; nothing was written. Faults: {len(faults)}.", *lines]))


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
