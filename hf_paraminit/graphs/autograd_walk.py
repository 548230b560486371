"""Reading a network's operations off the autograd graph of a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hf_paraminit.errors import TracingError


@dataclass(slots=True)
class Operation:
    """One node of the walked graph: a parameter, or an autograd function that has none.

    Attributes:
        name: Parameter path, with a leading dot when the root module owns it, or the autograd type name.
        owner: Module that owns the parameter, or the autograd function itself.
        parameter: The traced parameter, None for functions and for leaves that the model does not register.
    """

    name: str
    owner: Any
    parameter: Tensor | None = None


@dataclass(slots=True)
class OperationGraph:
    """Operations and directed edges; an edge set may be edited, indices stay.

    Attributes:
        operations: Record at each index.
        successors: Targets of the edges that leave each index.
        predecessors: Sources of the edges that enter each index.
        order: Indices that still belong to the graph, in order. Right after the walk: by discovery, outputs first.
        uses: How many autograd functions take the parameter at an index.
    """

    operations: list[Operation] = field(default_factory=list)
    successors: list[set[int]] = field(default_factory=list)
    predecessors: list[set[int]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    uses: Counter[int] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[tuple[int, Operation]]:
        """Iterate over a snapshot of (index, record) in order."""
        return iter([(index, self.operations[index]) for index in self.order])

    def append(self, operation: Operation) -> int:
        """Add an operation without edges at the end of the order and return its index."""
        index = len(self.operations)
        self.operations.append(operation)
        self.successors.append(set())
        self.predecessors.append(set())
        self.order.append(index)
        return index

    def link(self, source: int, target: int) -> None:
        """Add an edge."""
        self.successors[source].add(target)
        self.predecessors[target].add(source)

    def unlink(self, source: int, target: int) -> None:
        """Remove an edge if it exists."""
        self.successors[source].discard(target)
        self.predecessors[target].discard(source)

    def contract(self, dropped: set[int]) -> None:
        """Remove operations and join what was before each of them with what was behind it."""
        for index in dropped:
            sources, targets = self.predecessors[index], self.successors[index]
            for source in sources:
                self.successors[source].discard(index)
                self.successors[source].update(targets - {source})
            for target in targets:
                self.predecessors[target].discard(index)
                self.predecessors[target].update(sources - {target})
            self.successors[index], self.predecessors[index] = set(), set()
        self.order = [index for index in self.order if index not in dropped]


def parameter_owners(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Map the id of each parameter to its path and owner; of several names of a tied parameter the last one counts."""
    return {
        id(parameter): (f"{path}.{name}", module)
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def walk_autograd(roots: list[Any], owners: Mapping[int, tuple[str, nn.Module]], *, explicit: bool) -> OperationGraph:
    """Turn an autograd graph into operations, depth first from the outputs.

    A function with parameters is represented by them: the first one receives its inputs, the last one feeds its
    consumers. Edges run with the data, except that whatever is named "bias" comes after what it is added to.

    Args:
        roots: `grad_fn` of each output, in order.
        owners: `parameter_owners` of the traced model.
        explicit: Whether the softmax of decomposed fused attention counts as a softmax.

    Returns:
        The graph in order of discovery.
    """
    graph = OperationGraph()
    index_of: dict[Any, int] = {}
    first, last = {}, {}  # of each function: the operation that receives its inputs, the one that feeds its consumers

    functions = []
    stack = list(reversed(roots))
    while stack:
        function = stack.pop()
        if function in first:
            continue
        refuse_hidden_operations(function)
        children = [child for child, _ in function.next_functions if child is not None]
        leaves = [child for child in children if _is_leaf(child)]
        for leaf in leaves or (function,):
            if leaf not in index_of:
                index_of[leaf] = graph.append(_operation(leaf, owners, explicit))
        graph.uses.update({index_of[leaf] for leaf in leaves})
        first[function] = index_of[leaves[0] if leaves else function]
        last[function] = index_of[leaves[-1] if leaves else function]
        functions.append((function, children))
        stack.extend(child for child in reversed(children) if not _is_leaf(child))

    for function, children in functions:
        start = first[function]
        for child in children:
            is_leaf = _is_leaf(child)
            link = index_of[child] if is_leaf else last[child]
            name = graph.operations[link].name if is_leaf else type(child).__name__
            if link == start:
                continue
            if "bias" in name:
                graph.link(start, link)
            else:
                graph.link(link, start)
    return graph


def refuse_hidden_operations(function: Any) -> None:
    """Raise `TracingError` for a function that stands for a part of the network without showing it."""
    if type(function).__name__ == "CheckpointFunctionBackward":
        raise TracingError(
            "Cannot trace: re-entrant gradient checkpointing hides a part of the network. Checkpoint with "
            "use_reentrant=False, or switch checkpointing on after the weights are initialized."
        )


def _is_leaf(function: Any) -> bool:
    return type(function).__name__ == "AccumulateGrad"


def _operation(function: Any, owners: Mapping[int, tuple[str, nn.Module]], explicit: bool) -> Operation:
    if not _is_leaf(function):
        name = type(function).__name__
        return Operation(name.removeprefix("Safe") if explicit and name.startswith("SafeSoftmax") else name, function)
    parameter = function.variable
    if id(parameter) not in owners:
        return Operation("AccumulateGrad", function)
    name, owner = owners[id(parameter)]
    return Operation(name, owner, parameter)
