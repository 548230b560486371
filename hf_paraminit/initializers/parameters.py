"""From predicted values to written parameters: plan, check everything, then write once or not at all."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_paraminit.errors import PredictionError
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
    kept: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def plan_write(model: nn.Module, names: Iterable[str] | None = None) -> WritePlan:
    """Work out which parameters to offer to an initializer; touches nothing.

    Args:
        model: the model to be initialized.
        names: fully qualified parameter names (any name of a tied tensor will do); None offers all.

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

    faults = {name: fault for name in wanted if (fault := _unwritable(everything[name])) is not None}
    on_meta = [name for name in wanted if everything[name].is_meta]
    if len(on_meta) < len(wanted):
        faults |= dict.fromkeys(
            on_meta, "is on the meta device while others are not; materialise the whole model first"
        )
    _raise_faults(f"Cannot initialize {model_name}", faults)

    offered = {name: everything[name] for name in wanted if _holds_numbers(everything[name])}
    refused = {
        name: f"{_short(everything[name].dtype)} parameters are not predicted" for name in wanted if name not in offered
    }
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


def write_values(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy checked values into the parameters: all of them, or on any failure none.

    Moving to another device is what can fail, for want of memory, so it is done before the first parameter changes. The
    copies then are one call into torch, which no interrupt can split and which needs no further memory.

    Args:
        parameters: name -> tensor to write into.
        values: tensors of the same shapes, in other dtypes and on other devices if need be.
    """
    with torch.no_grad():
        targets = [parameters[name] for name in values]
        staged = [value.to(target.device) for value, target in zip(values.values(), targets, strict=True)]
        if targets:
            torch._foreach_copy_(targets, staged)


def _parameters_and_aliases(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Distinct parameters by first name, and the further names of tied ones."""
    first_name: dict[object, str] = {}
    parameters: dict[str, nn.Parameter] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_name.setdefault(_memory_of(parameter), name)
        if first == name:
            parameters[name] = parameter
        else:
            aliases[name] = first
    return parameters, aliases


def _memory_of(parameter: nn.Parameter) -> object:
    """Equal for two parameters that are the same elements in memory, even when they are two Python objects."""
    if is_lazy(parameter) or _is_wrapped(parameter) or parameter.is_meta or parameter.numel() == 0:
        return id(parameter)
    return parameter.device, parameter.data_ptr(), parameter.shape, parameter.stride()


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


def _unwritable(parameter: nn.Parameter) -> str | None:
    """Why values cannot be copied into this parameter, or None when they can."""
    if is_lazy(parameter):
        return "has no shape yet; run one forward pass of the lazy module first"
    if _is_wrapped(parameter) or parameter.is_quantized or _is_packed(parameter):
        return f"is a {type(parameter).__name__}; initialize before quantizing or sharding the model"
    if parameter.is_inference():
        return "was made in inference mode and is read-only; build the model outside torch.inference_mode()"
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


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
