"""Structural copies of a model: same modules and names, other tensors."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.primitives import is_instance_of

# Values that cannot hold a tensor or a module and that nobody changes in place.
_ATOMIC_TYPES = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type,
        types.BuiltinFunctionType,
        torch.dtype,
        torch.device,
        torch.Size,
    }
)
# Where Accelerate keeps what moves the weights of a dispatched or offloaded module in and out of memory.
_DISPATCH_ATTRIBUTES = ("forward", "_old_forward", "_hf_hook")
# Says that a Transformers model carries the hooks that record its hidden states; a copy sets up its own.
_HOOK_FLAG = "_output_capturing_hooks_installed"
# Classes of torch that compile or replicate one module -> its name there; a copy runs that module alone.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
_HOOK_TABLES = tuple(name for name, value in vars(nn.Module()).items() if "_hooks" in name and isinstance(value, dict))


def tensor_on_meta(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape on the meta device; floating point becomes float32."""
    return torch.empty(tensor.shape, dtype=_traced_dtype(tensor), device="meta")


def tensor_on_cpu(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU (zeros for a tensor without storage); floating point becomes float32."""
    if tensor.is_meta:
        return torch.zeros(tensor.shape, dtype=_traced_dtype(tensor))
    return tensor.detach().to("cpu", _traced_dtype(tensor), copy=True)


def empty_on_cpu(tensor: Tensor) -> Tensor:
    """Return an uninitialized tensor of the same shape on the CPU; floating point becomes float32."""
    return torch.empty(tensor.shape, dtype=_traced_dtype(tensor), device="cpu")


def _traced_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def copy_structure(model: nn.Module, copy_tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a model with every tensor replaced, the original left alone.

    All parameters of floating point require gradients in the copy, frozen or not. Tensors, modules and other objects
    that the model shares stay shared. Hooks of users are left out, since they may write into the user's objects; those
    with which `torch.nn.utils` computes weights stay.

    Args:
        model: Any module.
        copy_tensor: Makes the replacement of a parameter, buffer or plain tensor attribute.

    Returns:
        A module of the same class, in the same train/eval mode.

    Raises:
        TracingError: When a parameter has no shape yet, or a module was compiled by TorchScript.
    """
    return _StructureCopier(copy_tensor).copy_model(model)


class _StructureCopier:
    """One copy in progress; `memo` maps the id of an original to its replacement, as in `copy.deepcopy`.

    `copy.deepcopy` of the whole model would give the same result, but spends several times the duration of a forward
    pass on the dozen hook tables of every module.
    """

    def __init__(self, copy_tensor: Callable[[Tensor], Tensor]) -> None:
        self.copy_tensor = copy_tensor
        self.memo: dict[int, Any] = {}

    def copy_model(self, model: nn.Module) -> nn.Module:
        originals = list(model.named_modules())
        for name, module in originals:
            if isinstance(module, torch.jit.ScriptModule):
                raise TracingError(
                    f"Cannot trace {type(model).__name__}: {name or 'the model'} was compiled by TorchScript, which "
                    "hides its operations. Pass the Python module it was made from."
                )
            self.memo[id(module)] = object.__new__(type(module))
        for name, module in originals:
            self._reject_lazy_parameters(name, module)
            self._replace_tensors(self.memo[id(module)], module)
        for _, module in originals:
            self._copy_attributes(self.memo[id(module)], module)
        return self.memo[id(model)]

    def _replace_tensors(self, replica: nn.Module, module: nn.Module) -> None:
        state = replica.__dict__
        state["_parameters"] = {name: self._replace(tensor) for name, tensor in module._parameters.items()}
        state["_buffers"] = {name: self._replace(tensor) for name, tensor in module._buffers.items()}
        state["_modules"] = {
            name: None if child is None else self.memo[id(child)] for name, child in module._modules.items()
        }

    def _copy_attributes(self, replica: nn.Module, module: nn.Module) -> None:
        """Copy what else the instance holds; it may refer to parameters and modules, which are replaced by now."""
        state = replica.__dict__
        left_out = (*(_DISPATCH_ATTRIBUTES if "_hf_hook" in module.__dict__ else ()), _HOOK_FLAG)
        for name, value in module.__dict__.items():
            # A function in place of the method `forward` would run the original, to which it is bound by closure.
            if name in state or name in left_out or (name == "forward" and isinstance(value, types.FunctionType)):
                continue
            state[name] = value if type(value) in _ATOMIC_TYPES else self._copy_attribute(name, value)
        state["_compiled_call_impl"] = None
        for class_name, child in _WRAPPERS.items():
            if is_instance_of(module, "torch", class_name):
                state["forward"] = state["_modules"][child]

    def _copy_attribute(self, name: str, value: Any) -> Any:
        if name in _HOOK_TABLES:
            return OrderedDict((key, hook) for key, hook in value.items() if _computes_weights(hook))
        if type(value) is tuple and all(type(item) in _ATOMIC_TYPES for item in value):
            return value
        if isinstance(value, Tensor):
            return self._replace(value)
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, types.FunctionType):
            return self._copy_function(name, value)
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, types.GeneratorType):
            return _refuse_to_generate(name)
        num_copied = len(self.memo)
        try:
            with _TensorReplacement(self):
                return copy.deepcopy(value, self.memo)
        except Exception:  # what copying runs is code of the object's class, which may raise anything
            while len(self.memo) > num_copied:  # half copied objects
                self.memo.popitem()
            return self._copy_in_part(value)

    def _copy_function(self, name: str, function: types.FunctionType) -> Any:
        """Copy a function that may refer to the model by closure, as a lambda does; compiled ones become plain."""
        original = getattr(function, "_torchdynamo_orig_callable", function)
        if not isinstance(original, types.FunctionType):  # a bound method
            return self._copy_attribute(name, original)
        if original.__closure__ is None:
            return original
        variables, closure = original.__code__.co_freevars, original.__closure__
        cells = tuple(types.CellType() for _ in closure)
        replica = types.FunctionType(
            original.__code__, original.__globals__, original.__name__, original.__defaults__, cells
        )
        replica.__kwdefaults__ = original.__kwdefaults__
        self.memo[id(function)] = self.memo[id(original)] = replica
        for cell, original_cell, variable in zip(cells, closure, variables, strict=True):
            try:
                content = original_cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
            cell.cell_contents = content if type(content) in _ATOMIC_TYPES else self._copy_attribute(variable, content)
        return replica

    def _copy_in_part(self, value: Any) -> Any:
        """Copy an object around what cannot be copied in it (a lock, a file), which stays shared."""
        is_plain = type(value).__reduce_ex__ is object.__reduce_ex__ and not hasattr(value, "__deepcopy__")
        if not is_plain or not hasattr(value, "__dict__"):
            return value
        try:
            replica = object.__new__(type(value))
        except TypeError:  # a class written in C
            return value
        self.memo[id(value)] = replica
        for name, content in vars(value).items():
            is_atomic = type(content) in _ATOMIC_TYPES
            replica.__dict__[name] = content if is_atomic else self._copy_attribute(name, content)
        return replica

    def _replace(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        replacement = self.memo.get(id(tensor))
        if replacement is None:
            replacement = self.copy_tensor(tensor)
            if isinstance(tensor, nn.Parameter):
                is_differentiable = replacement.is_floating_point() or replacement.is_complex()
                replacement = nn.Parameter(replacement, requires_grad=is_differentiable)
            self.memo[id(tensor)] = replacement
        return replacement

    @staticmethod
    def _reject_lazy_parameters(name: str, module: nn.Module) -> None:
        for parameter_name, parameter in module._parameters.items():
            if parameter is not None and nn.parameter.is_lazy(parameter):
                raise TracingError(
                    f"Cannot trace: parameter {name}.{parameter_name} of a {type(module).__name__} has no shape yet. "
                    "Run one forward pass so that the lazy layer is initialized, then trace."
                )


class _TensorReplacement(TorchFunctionMode):
    """Makes `copy.deepcopy` replace the tensors it meets inside lists, dicts and other objects."""

    def __init__(self, copier: _StructureCopier) -> None:
        super().__init__()
        self.copier = copier

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return self.copier._replace(args[0])
        if func is Tensor.clone:  # by `Parameter.__deepcopy__`, of a temporary that must not enter the memo
            return self.copier.copy_tensor(args[0])
        return func(*args, **(kwargs or {}))


def _refuse_to_generate(name: str) -> Iterator[Any]:
    raise TracingError(
        f"Cannot trace: the forward pass draws from the generator {name!r}, which cannot be copied, so that tracing "
        "would use it up. Take the values from a list or an iterator class instead."
    )
    yield


def _computes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")
