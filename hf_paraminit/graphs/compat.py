"""The graph that published GHN-2 and GHN-3 checkpoints were trained on (arXiv 2110.13100, 2303.04143).

Where a rule looks arbitrary (neighbours in the order of discovery, substrings of names), it decides what the
checkpoints saw, and is kept to the letter.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.graphs.autograd_walk import Operation, OperationGraph
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.ordering import topological_order
from hf_paraminit.graphs.primitives import (
    NORM_PRIMITIVES,
    OPERATION_PRIMITIVES,
    POOLING_PRIMITIVES,
    is_instance_of,
    operation_text,
    parameter_primitive,
)
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths


def build_compat_graph(
    graph: OperationGraph,
    model: nn.Module,
    *,
    input_size: tuple[int, int, int] | None,
    virtual_edge_cutoff: int,
    attention: str,
) -> ComputationalGraph:
    """Reduce the walked operations to the vocabulary, repair their wiring, and type them.

    Args:
        graph: Operations in order of discovery; edited in place.
        model: The traced model.
        input_size: (channels, height, width) of the traced sample.
        virtual_edge_cutoff: Longest path that counts, in hops.
        attention: Recorded in the result.
    """
    keep_vocabulary(graph)
    place_weights_before_biases(graph)
    place_softmax_behind_its_projections(graph)
    if is_instance_of(model, "torchvision", "SwinTransformer"):
        rewire_swin_reductions(graph)
    drop_single_input_joins(graph)
    append_input(graph)
    is_acyclic = sort_topologically(graph)
    if is_instance_of(model, "torchvision", "VisionTransformer") or is_instance_of(
        model, "hf_paraminit", "DeepNetsNetwork"
    ):
        separate_position_tables(graph)
    if is_instance_of(model, "torchvision", "SqueezeNet"):
        move_pooling_before_classifier(graph)
    nodes = _describe(graph, model)
    edges = _edge_table(graph)
    return ComputationalGraph(
        nodes=nodes,
        edges=edges,
        distances=shortest_path_lengths(edges, len(nodes), virtual_edge_cutoff),
        input_index=next(index for index, node in enumerate(nodes) if node.primitive == "input"),
        class_weight_index=_index_if_named(nodes, len(nodes) - 2, ".weight"),
        class_bias_index=_index_if_named(nodes, len(nodes) - 1, ".bias"),
        num_cells=_num_cells(model),
        input_size=input_size,
        virtual_edge_cutoff=virtual_edge_cutoff,
        mode="compat",
        attention=attention,
        warnings=_warnings(graph, is_acyclic),
    )


def _warnings(graph: OperationGraph, is_acyclic: bool) -> tuple[str, ...]:
    if not is_acyclic:
        return ("the graph has a cycle: some layer is used more than once",)
    # Its cycle of one operation went when activations between its uses were left out.
    for index, operation in enumerate(graph.operations):
        if graph.uses[index] > 1 and isinstance(operation.owner, nn.Linear) and operation.name.endswith(".weight"):
            return (f"{operation.name} is used {graph.uses[index]} times, but has one node",)
    return ()


def primitive_of(operation: Operation) -> str | None:
    """Return the primitive of a parameter or autograd function, None outside the vocabulary."""
    if isinstance(operation.owner, nn.Module):
        return parameter_primitive(operation.owner, operation.name)
    return OPERATION_PRIMITIVES.get(operation_text(operation.name))


# --- Filtering -------------------------------------------------------------------------------------------------------


def keep_vocabulary(graph: OperationGraph) -> None:
    """Remove everything outside the vocabulary, gates that are no squeeze-and-excitation, and one-input joins."""
    has_gate = any("sigmoid" in name or "swish" in name for name in _lower_names(graph))
    num_incoming = {index: len(graph.predecessors[index]) for index in graph.order}
    unsupported = {operation.name for _, operation in graph if primitive_of(operation) is None}

    def drop_where(matches: Callable[[str], bool]) -> None:
        _drop(graph, matches, num_incoming, has_gate)

    drop_where(_containing("Mul"))
    drop_where(_contains_any(unsupported, {operation.name for _, operation in graph}))
    for pattern in ("Mean", "Add", "Cat"):
        drop_where(_containing(pattern))


def drop_single_input_joins(graph: OperationGraph) -> None:
    """Remove sums and concatenations that the re-wiring has left with one input."""
    for pattern in ("Add", "Cat"):
        num_incoming = {index: len(graph.predecessors[index]) for index in graph.order}
        _drop(graph, _containing(pattern), num_incoming, has_gate=False)


def _drop(graph: OperationGraph, matches: Callable[[str], bool], num_incoming: dict[int, int], has_gate: bool) -> None:
    names = [operation.name for _, operation in graph]
    lower_names = _lower_names(graph)
    dropped = set()
    for position, (index, name) in enumerate(zip(graph.order, names, strict=True)):
        if not matches(name):
            continue
        if name.startswith("Mean"):
            is_kept = not has_gate or _is_near_head(lower_names, position)
        elif name.startswith("Mul"):
            is_kept = has_gate and _is_channel_gate(lower_names, position)
        else:
            is_kept = name.startswith(("Cat", "Add")) and num_incoming[index] > 1
        if not is_kept:
            dropped.add(index)
    graph.contract(dropped)


def _is_near_head(names: list[str], position: int) -> bool:
    # Negative positions wrap around; past the end counts as the head.
    try:
        near, _ = (names[position - 1], names[position - 2]), (names[position - 3], names[position + 1])
    except IndexError:
        return True
    return any(name.startswith(("classifier", "fc", "head")) for name in near)


def _is_channel_gate(names: list[str], position: int) -> bool:
    if _is_near_head(names, position):
        return False
    return (
        names[position - 2].startswith(("hard", "sigmoid"))
        or names[position - 3].startswith(("relu", "mean"))
        or names[position + 1].startswith(("hard", "sigmoid", "relu"))
    )


def _containing(pattern: str) -> Callable[[str], bool]:
    return lambda name: pattern in name


def _contains_any(patterns: set[str], names: set[str]) -> Callable[[str], bool]:
    """Return a test whether one of `names` contains a pattern.

    A pattern may also be part of a longer, supported name. Comparing each pattern with each name would dominate the
    trace of a large model, so candidates are picked by the pattern's last path component first.
    """
    by_ending: dict[str, list[str]] = {}
    for pattern in patterns:
        by_ending.setdefault("." + pattern.rpartition(".")[2] if "." in pattern else pattern, []).append(pattern)
    matching = {
        name
        for ending, group in by_ending.items()
        for name in names
        if ending in name and (name in patterns or any(pattern in name for pattern in group))
    }
    return matching.__contains__


def _lower_names(graph: OperationGraph) -> list[str]:
    return [operation.name.lower() for _, operation in graph]


# --- Re-wiring -------------------------------------------------------------------------------------------------------


def place_weights_before_biases(graph: OperationGraph) -> None:
    """Turn "input and weight meet in the bias" into input -> weight -> bias.

    The weight of a linear layer reaches the bias through a transpose of its own. Records change places, edges stay.
    A bias-free linear layer is repaired only where a softmax follows; elsewhere its weight stays beside the path.
    """
    operations = graph.operations
    for index in graph.order:
        if graph.predecessors[index] or "weight" not in operations[index].name:
            continue
        for target in sorted(graph.successors[index]):
            is_same_layer = operations[index].owner is operations[target].owner
            is_before_softmax = "softmax" in operations[target].name.lower() and not graph.predecessors[index]
            if (is_same_layer or is_before_softmax) and len(graph.predecessors[target]) > 1:
                _swap(graph, index, target)


def _swap(graph: OperationGraph, index: int, target: int) -> None:
    operations = graph.operations
    num_outgoing = len(graph.successors[index])
    operations[index], operations[target] = operations[target], operations[index]
    graph.unlink(index, target)
    graph.link(target, index)
    if num_outgoing == 1:
        for successor in graph.successors[target] - {index}:
            graph.unlink(target, successor)
            graph.link(index, successor)


def place_softmax_behind_its_projections(graph: OperationGraph) -> None:
    """Make attention a chain: projections -> softmax -> output projection, without the value's way around."""
    frozen = [set(targets) for targets in graph.successors]
    for index, operation in graph:
        if "softmax" not in operation.name.lower():
            continue
        for target in sorted(graph.successors[index]):
            for source in sorted(graph.predecessors[target] - {index}):
                num_paths = _count_paths(frozen, source, target)
                is_linked = source in graph.successors[index]
                if num_paths > 1 or not is_linked:
                    graph.unlink(source, target)
                if num_paths == 1 and not is_linked:
                    graph.link(source, index)


def _count_paths(successors: list[set[int]], source: int, target: int) -> int:
    """Count simple paths, capped at two: a second one exists if the target is still reached without some edge of one.

    Polynomial on any graph, cyclic ones included, where enumerating paths is exponential.
    """
    path = _find_path(successors, source, target)
    if path is None:
        return 0
    for edge in pairwise(path):
        if _find_path(successors, source, target, without=edge) is not None:
            return 2
    return 1


def _find_path(
    successors: list[set[int]], source: int, target: int, without: tuple[int, int] | None = None
) -> list[int] | None:
    previous = {source: source}
    queue = deque([source])
    while queue:
        node = queue.popleft()
        for following in successors[node]:
            if following in previous or (node, following) == without:
                continue
            previous[following] = node
            if following == target:
                path = [target]
                while path[-1] != source:
                    path.append(previous[path[-1]])
                return path[::-1]
            queue.append(following)
    return None


def rewire_swin_reductions(graph: OperationGraph) -> None:
    """Put the bias-free reduction of a torchvision Swin back behind its norm."""
    names = {index: operation.name for index, operation in graph}
    for index, name in names.items():
        if name.lower().endswith("norm.weight"):
            reduction_name = name.replace("norm", "reduction")
            reduction = next((other for other, other_name in names.items() if reduction_name in other_name), None)
            for target in sorted(graph.successors[index]):
                if names[target].endswith("norm1.weight") or "Add" in names[target]:
                    graph.unlink(index, target)
                    if reduction is not None:
                        graph.link(index, reduction)
        if name.endswith("attn.proj.bias"):
            for target in sorted(graph.successors[index]):
                if names[target].endswith("reduction.weight"):
                    graph.unlink(index, target)
                    for following in graph.successors[target]:
                        if names[following].startswith("AddBackward"):
                            graph.link(index, following)


def append_input(graph: OperationGraph) -> None:
    """Add the input node before every weight that nothing feeds."""
    entries = [index for index, operation in graph if not graph.predecessors[index] and "weight" in operation.name]
    node = graph.append(Operation("input", None))
    for index in entries:
        graph.link(node, index)


# --- Order -----------------------------------------------------------------------------------------------------------


def sort_topologically(graph: OperationGraph) -> bool:
    """Order the nodes generation by generation, or leave the order on a cycle; return whether the graph is acyclic."""
    position = {index: place for place, index in enumerate(graph.order)}
    order = topological_order([[position[target] for target in graph.successors[index]] for index in graph.order])
    if len(order) < len(graph.order):
        return False
    graph.order = [graph.order[place] for place in order]
    return True


def separate_position_tables(graph: OperationGraph) -> None:
    """Give back to each position table the sum that it stands for: table -> sum, the table's other edges to the sum."""
    for index, operation in graph:
        if primitive_of(operation) == "pos_enc":
            graph.operations[index] = Operation("AddBackward0", None)
            table = graph.append(operation)
            graph.link(table, index)
            graph.order.pop()
            graph.order.insert(graph.order.index(index), table)


def move_pooling_before_classifier(graph: OperationGraph) -> None:
    """Order the tail of a SqueezeNet as pooling, weight, bias, as in other networks; edges stay."""
    weight, bias, pooling = graph.order[-3:]
    operations = graph.operations
    if operations[pooling].name.startswith("Mean") and operations[weight].name.startswith("classifier"):
        operations[weight], operations[bias], operations[pooling] = (
            operations[pooling],
            operations[weight],
            operations[bias],
        )


# --- Features --------------------------------------------------------------------------------------------------------


def _describe(graph: OperationGraph, model: nn.Module) -> tuple[Node, ...]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with_own_node = {id(operation.parameter) for _, operation in graph}
    num_nodes = len(graph.order)
    nodes = []
    for position, ((_, operation), cell) in enumerate(zip(graph, _cells(graph, _num_cells(model)), strict=True)):
        primitive = primitive_of(operation) or "sum"
        shape = _shape(operation, primitive)
        if shape is not None and position == num_nodes - 2 and len(shape) == 4 and shape[2:] == (1, 1):
            shape = shape[:2]  # a 1x1 convolution as classifier
        is_listed = operation.parameter is not None or primitive in POOLING_PRIMITIVES
        nodes.append(
            Node(
                primitive=primitive,
                shape=shape,
                parameters=tuple(names[id(tensor)] for tensor in _parameters(operation, primitive, with_own_node)),
                cell=cell if is_listed else -1,
                name=operation.name,
            )
        )
    return tuple(nodes)


def _parameters(operation: Operation, primitive: str, with_own_node: set[int]) -> Iterable[Tensor]:
    if operation.parameter is None:
        return
    yield operation.parameter
    bias = getattr(operation.owner, "bias", None)
    is_norm_weight = primitive in NORM_PRIMITIVES and operation.parameter is operation.owner.weight
    if is_norm_weight and isinstance(bias, nn.Parameter) and id(bias) not in with_own_node:
        yield bias


def _shape(operation: Operation, primitive: str) -> tuple[int, ...] | None:
    if primitive in POOLING_PRIMITIVES:
        return (1, 1, *operation.owner._saved_kernel_size)
    if operation.parameter is None:
        return None
    shape = tuple(operation.parameter.shape)
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1:
        side = math.isqrt(shape[1])
        return (1, shape[2], side, side)
    return shape


def _num_cells(model: nn.Module) -> int:
    return getattr(model, "_n_cells", 1)


def _cells(graph: OperationGraph, num_cells: int) -> Iterable[int]:
    """Yield the cell of each node; one whose name does not tell belongs to the cell before it."""
    cell = 0
    for _, operation in graph:
        name = operation.name
        if num_cells == 1 or name.startswith(("stem", "pos_enc")):
            cell = 0
        elif (match := re.match(r"cells\.(\d+)", name)) is not None:
            cell = int(match[1])
        elif name.startswith(("classifier", "auxiliary")):
            cell = num_cells - 1
        yield cell


def _index_if_named(nodes: tuple[Node, ...], index: int, ending: str) -> int | None:
    """Return the index if it exists and its parameter is of the wanted kind: the classifier is found by position."""
    return index if index >= 0 and nodes[index].parameters and ending in nodes[index].name else None


def _edge_table(graph: OperationGraph) -> Tensor:
    position = {index: place for place, index in enumerate(graph.order)}
    rows = [
        (position[index], target)
        for index in graph.order
        for target in sorted(position[successor] for successor in graph.successors[index])
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


# --- Published form --------------------------------------------------------------------------------------------------


def node_info(graph: ComputationalGraph) -> list[list[list[Any]]]:
    """Return the parameter and pooling nodes by cell, as data sets of graphs store them.

    Returns:
        For each cell, rows [index, name, primitive, shape or None, is last weight, is last bias].
    """
    cells: list[list[list[Any]]] = [[] for _ in range(graph.num_cells)]
    for index, node in enumerate(graph.nodes):
        if node.cell >= 0:
            name = node.primitive if node.primitive in POOLING_PRIMITIVES else _stored_name(node.name)
            shape = list(node.shape) if node.shape is not None else None
            flags = [index == graph.class_weight_index, index == graph.class_bias_index]
            cells[node.cell].append([index, name, node.primitive, shape, *flags])
    return cells


def _stored_name(name: str) -> str:
    for prefix in ("stem", "pos_enc"):
        if prefix in name:
            name = name[name.index(prefix) :]
            break
    parts = name.split(".")
    for place in range(len(parts) - 2):
        # Older networks had no "op" level between an operation of a cell and its layers.
        if parts[place] == "_ops" and parts[place + 2].isdigit():
            parts.insert(place + 2, "op")
    return ".".join(parts)
