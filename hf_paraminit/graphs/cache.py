"""Graphs of models that have been traced before in this process.

A graph is served again only to a model of the very same structure, and only while the code that its forward pass can
reach is the same: every module, every attribute of every module, the shapes of all tensors and which of them are shared
must be equal, and the global names in the library modules that its classes can refer to must mean the same objects.
Whatever cannot be compared with certainty, such as a class of the user's, is traced anew each time.
"""

from __future__ import annotations

import enum
import functools
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.graphs.graph import ComputationalGraph

LIBRARIES = ("timm", "torchvision", "transformers")  # the classes of all others are not looked through
MAX_BYTES = 2**26  # of the distances, by far the largest part of a graph
MAX_GRAPHS = 32

REPORT = "_hf_paraminit"  # attribute in which a model carries the report of its initialization

_HEAP_TYPE = 1 << 9  # CPython's flag of classes that were made by a class statement
_VALUES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
_CONTAINERS = (list, tuple, set, frozenset)


@dataclass(frozen=True, slots=True)
class _Entry:
    graph: ComputationalGraph
    code: list[Any]


class GraphCache:
    """Graphs by the structure of the model; the oldest leave first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget all graphs."""
        with self._lock:
            self._entries.clear()

    def get(
        self, model: nn.Module, settings: tuple[Any, ...], trace: Callable[[], ComputationalGraph]
    ) -> ComputationalGraph:
        """Return the graph of a model, traced only when it is not known.

        Args:
            model: Any module.
            settings: Everything else that the graph depends on.
            trace: Makes the graph.
        """
        try:
            key = (settings, _torch_flags(), describe_structure(model))
        except (_CannotCompareError, RecursionError):
            return trace()
        code = list(_reachable_code(model))
        with self._lock:
            entry = self._entries.get(key)
        if entry is not None and _are_same(entry.code, code):
            return entry.graph
        graph = trace()
        if not graph.used_values:
            self._keep(key, _Entry(graph, code))
        return graph

    def _keep(self, key: Any, entry: _Entry) -> None:
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = entry
            while len(self._entries) > MAX_GRAPHS or self._num_bytes() > MAX_BYTES:
                self._entries.popitem(last=False)

    def _num_bytes(self) -> int:
        return sum(entry.graph.distances.nbytes for entry in self._entries.values())


class _CannotCompareError(Exception):
    """Something in a model has no description that would be equal only for equal behaviour."""


def describe_structure(model: nn.Module) -> Any:
    """Return a hashable description of a model; equal ones mean equal graphs as long as the code is the same.

    Raises:
        _CannotCompareError: A class is of no known library, or an attribute of an unknown kind.
    """
    return _Describer().describe(model)


class _Describer:
    def __init__(self) -> None:
        self.places: dict[int, int] = {}  # of objects that may be met again, in the order of meeting
        self.met: list[Any] = []  # kept, so that no other object gets the address of one of them

    def describe(self, value: Any) -> Any:
        """Describe anything; an object that is met again is referred to by its place."""
        if isinstance(value, _VALUES) and type(value) in _VALUES:
            return type(value), value
        if isinstance(value, _CODE):
            return self._describe_code(value)
        if isinstance(value, enum.Enum):
            return type(value), value.name
        if id(value) in self.places:
            return "met", self.places[id(value)]
        self.places[id(value)] = len(self.places)
        self.met.append(value)
        if isinstance(value, Tensor):
            return type(value), tuple(value.shape), value.dtype, value.layout
        if type(value) in (dict, OrderedDict):
            return type(value), tuple((self.describe(key), self.describe(item)) for key, item in value.items())
        if isinstance(value, _CONTAINERS):
            return self._describe_container(value)
        if isinstance(value, functools.partial):
            return functools.partial, self.describe([value.func, value.args, value.keywords])
        return self._describe_object(value)

    def _describe_code(self, value: Any) -> Any:
        is_known = _is_of_library(value, "torch", "builtins", "math", "_operator", "collections")
        if not is_known or getattr(value, "__closure__", None) is not None:
            raise _CannotCompareError
        return value

    def _describe_container(self, value: Any) -> Any:
        if type(value) not in _CONTAINERS and not (isinstance(value, tuple) and _is_of_library(type(value))):
            raise _CannotCompareError
        items = (self.describe(item) for item in value)
        return type(value), frozenset(items) if isinstance(value, (set, frozenset)) else tuple(items)

    def _describe_object(self, value: Any) -> Any:
        """Describe an instance by its attributes, if they are all there is to it."""
        for kind in type(value).__mro__[:-1]:
            if (
                not kind.__flags__ & _HEAP_TYPE
                or vars(kind).get("__slots__")
                or not _is_of_library(kind, "torch", "abc")
            ):
                raise _CannotCompareError
        state = vars(value)
        if "forward" in state or state.get("_compiled_call_impl") is not None:
            raise _CannotCompareError
        return type(value), self.describe({name: item for name, item in state.items() if name != REPORT})


def _is_of_library(value: Any, *more: str) -> bool:
    name = getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in (*LIBRARIES, *more)


def _torch_flags() -> tuple[Any, ...]:
    """What in torch's global state can change which operations a forward pass runs."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    )


def _reachable_code(model: nn.Module) -> Iterator[Any]:
    """Yield what the global names of all library modules that a model's classes can refer to stand for."""
    waiting = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    waiting = {name for name in waiting if name.partition(".")[0] in LIBRARIES} | {"torch.nn.functional"}
    met: set[str] = set()
    while waiting:
        name = min(waiting)  # in an order that is the same each time
        waiting.remove(name)
        met.add(name)
        for value in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
            yield value
            home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str) and home not in met and home.partition(".")[0] in LIBRARIES:
                waiting.add(home)
            if isinstance(value, type) and home == name:
                yield from vars(value).values()
            elif type(value) is dict:
                yield from value.values()


def _are_same(objects: list[Any], others: list[Any]) -> bool:
    return len(objects) == len(others) and all(a is b for a, b in zip(objects, others, strict=True))
