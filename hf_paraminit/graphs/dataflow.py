"""The data flow of a network, read off its autograd graph by structure alone.

An operation with parameters is represented by them; what neither carries a parameter nor belongs to the vocabulary is
looked through. Every use of a parameter is a node of its own, so the flow has no cycles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_paraminit.graphs.autograd_walk import refuse_hidden_operations
from hf_paraminit.graphs.primitives import operation_text
from hf_paraminit.graphs.roles import Uses

_PRODUCTS = frozenset({"Mm", "Addmm", "Bmm", "Baddbmm", "Addbmm", "Mv", "Addmv", "Dot", "Linear"})
_SIGMOIDS = frozenset({"Sigmoid", "Hardsigmoid", "Hardswish", "Hardtanh", "Tanh", "Clamp", "ClampMin", "ClampMax"})
_AVERAGES = frozenset({"Mean", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D"})
_POOLINGS = (("MaxPool", "max_pool"), ("AvgPool", "avg_pool"))
_JOINS = {"Add": "sum", "Cat": "concat", "Stack": "concat"}
_MAX_EXPRESSION_SIZE = 8  # parameters that one weight may be computed from
_MAX_GATE_STEPS = 8  # elementwise operations between a gate's sigmoid and its product


@dataclass(slots=True)
class FlowNode:
    """A node of the flow: one use of a parameter, an operation of the vocabulary, or the input.

    Attributes:
        primitive: Type.
        parameter: The parameter, None for operations.
        function: The autograd function that the node was made from, None for the input.
        sources: Nodes that feed it.
    """

    primitive: str
    parameter: Tensor | None = None
    function: Any = None
    sources: set[int] = field(default_factory=set)


def functions_inputs_first(roots: list[Any]) -> list[Any]:
    """Return the autograd functions behind the outputs, each after those it takes inputs from."""
    order, is_found = [], set()
    for root in roots:
        if root in is_found:
            continue
        is_found.add(root)
        stack = [(root, iter(children(root)))]
        while stack:
            function, remaining = stack[-1]
            refuse_hidden_operations(function)
            following = next((child for child in remaining if child not in is_found), None)
            if following is None:
                order.append(function)
                stack.pop()
            else:
                is_found.add(following)
                stack.append((following, iter(children(following))))
    return order


def children(function: Any) -> list[Any]:
    """Return the functions whose results a function takes."""
    return [child for child, _ in function.next_functions if child is not None]


def behind_views(function: Any) -> Any:
    """Return the function that computed a result, past changes of its shape alone."""
    while "View" in type(function).__name__ and children(function):
        (function,) = children(function)
    return function


def parameter_uses(functions: list[Any], sample: Tensor | None) -> dict[int, Uses]:
    """Find how each parameter enters products and convolutions, directly or as part of a computed weight."""
    behind: dict[Any, frozenset[int] | None] = {}  # parameters that a result is computed from, None for data
    in_product: set[int] = set()
    in_convolution: set[int] = set()
    everything: set[int] = set()
    for function in functions:
        if _is_leaf(function):
            is_data = function.variable is sample
            behind[function] = None if is_data else frozenset({id(function.variable)})
            everything.add(id(function.variable))
            continue
        operands = [behind[child] for child in children(function)]
        known: list[frozenset[int]] = [operand for operand in operands if operand is not None]
        united = frozenset().union(*known)
        text = operation_text(type(function).__name__)
        if text in _PRODUCTS:
            in_product |= united
        elif "Convolution" in text:
            in_convolution |= united
        is_expression = len(known) == len(operands) and len(united) <= _MAX_EXPRESSION_SIZE
        behind[function] = united if is_expression else None
    return {key: Uses(key in in_product, key in in_convolution) for key in everything}


class FlowBuilder:
    """One flow in progress.

    Args:
        primitives: Type of each parameter that gets nodes, by id.
        sample: The traced input, None when the model brought its own.
    """

    def __init__(self, primitives: Mapping[int, str], sample: Tensor | None) -> None:
        self.primitives = primitives
        self.sample = sample
        self.nodes = [FlowNode("input")]
        # Of each function: the nodes its result comes from, and parameters that no operation has taken in yet.
        self._sources: dict[Any, frozenset[int]] = {}
        self._pending: dict[Any, tuple[Tensor, ...]] = {}

    def build(self, functions: list[Any]) -> list[FlowNode]:
        """Turn functions, inputs first, into nodes; node 0 is the input."""
        gates = {function for function in functions if _is_gate(function)}
        gate_averages = {average for gate in gates for average in _averages_of_gate(gate)}
        for function in functions:
            if _is_leaf(function):
                self._read_leaf(function)
                continue
            sources = frozenset().union(*(self._sources[child] for child in children(function)))
            pending = {id(p): p for child in children(function) for p in self._pending[child]}
            if not sources and not self._applies(function, pending):
                self._sources[function], self._pending[function] = sources, tuple(pending.values())
                continue
            self._sources[function] = self._place(function, sources, list(pending.values()), gates, gate_averages)
            self._pending[function] = ()
        return self.nodes

    def _read_leaf(self, leaf: Any) -> None:
        is_sample = leaf.variable is self.sample
        is_typed = id(leaf.variable) in self.primitives
        self._sources[leaf] = frozenset({0}) if is_sample else frozenset()
        self._pending[leaf] = (leaf.variable,) if is_typed else ()

    @staticmethod
    def _applies(function: Any, pending: Mapping[int, Tensor]) -> bool:
        """Whether parameters alone make data: a layer applied to a constant, or two weights that meet."""
        text = operation_text(type(function).__name__)
        return len(pending) > 1 or (bool(pending) and (text == "Embedding" or text in _PRODUCTS))

    def _place(
        self, function: Any, sources: frozenset[int], pending: list[Tensor], gates: set[Any], gate_averages: set[Any]
    ) -> frozenset[int]:
        text = operation_text(type(function).__name__)
        tables = [p for p in pending if self.primitives[id(p)] == "pos_enc" and text != "Embedding"]
        layers = [p for p in pending if not any(p is table for table in tables)]
        sources |= {self._append(FlowNode("pos_enc", table, function)) for table in tables}
        for parameter in sorted(layers, key=lambda p: self.primitives[id(p)] == "bias"):
            node = FlowNode(self.primitives[id(parameter)], parameter, function, set(sources) or {0})
            sources = frozenset({self._append(node)})
        if layers:
            return sources
        if text in _PRODUCTS:
            return self._attended(sources)
        primitive = None if function in gate_averages else self._operation_primitive(function, text, sources, gates)
        if primitive is None:
            return sources
        return frozenset({self._append(FlowNode(primitive, None, function, set(sources)))})

    def _append(self, node: FlowNode) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    @staticmethod
    def _operation_primitive(function: Any, text: str, sources: frozenset[int], gates: set[Any]) -> str | None:
        if text in _JOINS:
            return _JOINS[text] if len(sources) > 1 else None
        if ("Softmax" in text and "LogSoftmax" not in text) or text.startswith("ScaledDotProduct"):
            return "msa"
        if function in gates:
            return "cse"
        if text in _AVERAGES:
            return "glob_avg" if text != "Mean" or _is_spatial_mean(function) else None
        return next((primitive for part, primitive in _POOLINGS if part in text), None)

    def _attended(self, sources: frozenset[int]) -> frozenset[int]:
        """Make attention a chain: values reach the product through the softmax node that weighs them."""
        softmaxes = {node for node in sources if self.nodes[node].primitive == "msa"}
        if len(softmaxes) != 1:
            return sources
        (softmax,) = softmaxes
        others = sources - softmaxes
        behind = frozenset(node for node in others if self._leads_to(softmax, node))
        self.nodes[softmax].sources |= {node for node in others - behind if not self._leads_to(node, softmax)}
        return behind | softmaxes

    def _leads_to(self, start: int, end: int) -> bool:
        stack, seen = [end], {end}
        while stack:
            node = stack.pop()
            if node == start:
                return True
            fresh = self.nodes[node].sources - seen
            seen |= fresh
            stack.extend(fresh)
        return False


# --- Single functions ------------------------------------------------------------------------------------------------


def _is_leaf(function: Any) -> bool:
    return type(function).__name__ == "AccumulateGrad"


def _shape(function: Any, output: int = 0) -> tuple[int, ...]:
    return tuple(function._input_metadata[output].shape)


def _is_gate(function: Any) -> bool:
    """Whether a product scales its other operand by a sigmoid that is broadcast over positions or channels."""
    if not type(function).__name__.startswith("MulBackward") or len(children(function)) != 2:
        return False
    return any(_gate_sigmoid(child, _shape(function)) is not None for child in children(function))


def _gate_sigmoid(function: Any, product_shape: tuple[int, ...]) -> Any:
    for _ in range(_MAX_GATE_STEPS):
        if operation_text(type(function).__name__) in _SIGMOIDS:
            return function if _is_broadcast(_shape(function), product_shape) else None
        operands = children(function)
        if len(operands) != 1 or _is_leaf(operands[0]):
            return None
        function = operands[0]
    return None


def _is_broadcast(shape: tuple[int, ...], product_shape: tuple[int, ...]) -> bool:
    return _size(shape) < _size(product_shape) and (1 in shape[1:] or len(shape) < len(product_shape))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _averages_of_gate(gate: Any) -> Iterator[Any]:
    """Yield the pooling in front of a squeeze-and-excitation gate: part of the gate, no node of its own."""
    stack = [child for child in children(gate) if _gate_sigmoid(child, _shape(gate)) is not None]
    seen = set(stack)
    while stack:
        function = stack.pop()
        if operation_text(type(function).__name__) in _AVERAGES:
            yield function
            continue
        for child in children(function):
            is_squeezed = not _is_leaf(child) and sum(extent > 1 for extent in _shape(child)[1:]) <= 1
            if is_squeezed and child not in seen:
                seen.add(child)
                stack.append(child)


def _is_spatial_mean(function: Any) -> bool:
    """Whether a mean pools positions; a norm's mean over channels does not count."""
    dims = getattr(function, "_saved_dim", None)
    sizes = getattr(function, "_saved_self_sym_sizes", ())
    if dims is None or len(sizes) < 3:
        return False
    # Negative axes come back as unsigned 64-bit numbers.
    axes = {(dim - 2**64 if dim >= 2**63 else dim) % len(sizes) for dim in (dims if dims else range(len(sizes)))}
    if len(sizes) == 3:
        is_norm = axes == {2} and function._saved_keepdim
        return axes in ({1}, {2}) and not is_norm
    is_channels_first = axes == set(range(2, len(sizes)))
    is_channels_last = axes == set(range(1, len(sizes) - 1))
    return is_channels_first or is_channels_last
