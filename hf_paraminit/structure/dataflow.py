"""Where data meets parameters in one forward pass, read off its autograd graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn

from hf_paraminit.graphs.dataflow import children, functions_inputs_first
from hf_paraminit.graphs.forward_pass import Inputs, run_forward
from hf_paraminit.graphs.primitives import operation_text

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


class DataFlow:
    """The autograd functions that data pass through, and the parameters that enter at each.

    Args:
        model: Any module; it is copied, not touched.
        inputs: (channels, height, width) of an image, or example arguments.
        layers: Names of the weights that count as layers.

    Raises:
        TracingError: The forward pass fails.

    Attributes:
        functions: Functions that depend on the input, each after those it takes data from.
        parameters: Names of the parameters that enter a function, directly or through a computation without data.
        consumers: Functions that take a function's result.
        applied: Layers that a function applies.
        behind: Bit set of the functions in `applications` that a result depends on, itself included.
        applications: Functions that apply a layer, in order of execution.
        used_values: Whether the values of the weights had to be used.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, layers: Collection[str]) -> None:
        run = run_forward(model, inputs, explicit=True, show_data=True)
        self.used_values = run.used_values
        names = {id(parameter): name for name, parameter in run.replica.named_parameters()}
        self.functions: list[Any] = []
        self.parameters: dict[Any, tuple[str, ...]] = {}
        self.consumers: defaultdict[Any, list[Any]] = defaultdict(list)
        self.applied: dict[Any, tuple[str, ...]] = {}
        self.behind: dict[Any, int] = {}
        self.applications: list[Any] = []
        below: dict[Any, tuple[str, ...]] = {}  # parameters that a result without data is computed from
        functions = functions_inputs_first(run.roots)
        leaves = [getattr(function, "variable", None) for function in functions]
        shows_sample = any(leaf is not None and leaf is run.sample for leaf in leaves)
        for function, leaf in zip(functions, leaves, strict=True):
            if leaf is not None and leaf is run.sample:
                self._add(function, (), layers)
            elif leaf is not None:
                below[function] = (names[id(leaf)],) if id(leaf) in names else ()
            else:
                entering = tuple(name for child in children(function) for name in below.get(child, ()))
                # token ids have no gradient, so data begin where they are looked up
                is_lookup = not shows_sample and text_of(function) == "Embedding"
                if is_lookup or any(child in self.behind for child in children(function)):
                    self._add(function, entering, layers)
                else:
                    below[function] = tuple(dict.fromkeys(entering))

    def inputs(self, function: Any) -> list[Any]:
        """The functions whose results enter as data; one that enters twice comes twice."""
        return [child for child in children(function) if child in self.behind]

    def layers_in(self, bits: int) -> tuple[str, ...]:
        """The layers of a bit set of applications, in order of execution, each once."""
        found = [name for place in _places(bits) for name in self.applied[self.applications[place]]]
        return tuple(dict.fromkeys(found))

    def nearest(self, start: Any, step: Callable[[Any], list[Any]], is_goal: Callable[[Any], bool]) -> list[Any]:
        """The goals that are reached from a function, itself included, without passing another goal."""
        stack, seen, found = [start], {start}, []
        while stack:
            function = stack.pop()
            if is_goal(function):
                found.append(function)
                continue
            for following in step(function):
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return found

    def _add(self, function: Any, entering: tuple[str, ...], layers: Collection[str]) -> None:
        self.functions.append(function)
        self.parameters[function] = entering
        bits = 0
        for child in children(function):
            if child in self.behind:
                bits |= self.behind[child]
                self.consumers[child].append(function)
        # a bias table that a small network makes meets the data in a sum, which is no layer
        applied = tuple(name for name in entering if name in layers) if text_of(function) not in _ELEMENTWISE else ()
        if applied:
            self.applied[function] = applied
            bits |= 1 << len(self.applications)
            self.applications.append(function)
        self.behind[function] = bits


def shape_of(function: Any, output: int = 0) -> tuple[int, ...]:
    """The shape of a function's result."""
    return tuple(function._input_metadata[output].shape)


def text_of(function: Any) -> str:
    """The operation, as in "Add", "Bmm", "Convolution"."""
    return operation_text(type(function).__name__)


def _places(bits: int) -> Iterator[int]:
    """The positions of the ones of an integer, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
