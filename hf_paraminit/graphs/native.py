"""The graph of any network: types by class and structure, one node per use of a parameter, classifiers as declared.

It speaks the vocabulary of published GHN-2 and GHN-3 checkpoints (arXiv 2110.13100, 2303.04143), and agrees with
their graph where that one has no defect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.graphs.autograd_walk import parameter_owners
from hf_paraminit.graphs.class_layers import declared_class_layers
from hf_paraminit.graphs.dataflow import (
    FlowBuilder,
    FlowNode,
    behind_views,
    functions_inputs_first,
    parameter_uses,
)
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.ordering import topological_order
from hf_paraminit.graphs.padding import tap_share
from hf_paraminit.graphs.primitives import NORM_PRIMITIVES, POOLING_PRIMITIVES
from hf_paraminit.graphs.roles import KEPT_UNUSED, Role, Uses, is_channels_last_grid, norm_bias, parameter_role
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths

Owners = Mapping[int, tuple[str, nn.Module]]

MAX_NODES = 2000  # attention over nodes is quadratic; beyond this, uses and operations are merged


def build_native_graph(
    roots: list[Any],
    model: nn.Module,
    *,
    sample: Tensor | None,
    input_size: tuple[int, int, int] | None,
    virtual_edge_cutoff: int,
    attention: str,
) -> ComputationalGraph:
    """Build the graph from the autograd graph of one forward pass.

    Args:
        roots: `grad_fn` of each output, in order.
        model: The traced model.
        sample: The input that the outputs were computed from; None when the model brought its own.
        input_size: (channels, height, width) of the sample, None for inputs of another kind.
        virtual_edge_cutoff: Longest path that counts, in hops.
        attention: Recorded in the result.
    """
    functions = functions_inputs_first(roots)
    owners = parameter_owners(model)
    roles = _parameter_roles(model, owners, parameter_uses(functions, sample))
    primitives = {key: role.primitive for key, role in roles.items() if role.primitive is not None}
    flow = _sorted(_within_limit(FlowBuilder(primitives, sample).build(functions)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    nodes = tuple(_describe(node, names, owners) for node in flow)
    edges = torch.tensor(
        sorted((source, target) for target, node in enumerate(flow) for source in node.sources), dtype=torch.int64
    ).reshape(-1, 2)
    class_weights, class_biases = _class_nodes(roots, flow, model, owners)
    further = class_weights[1:] + class_biases[1:]
    carried = {name for node in nodes for name in node.parameters}
    return ComputationalGraph(
        nodes=nodes,
        edges=edges,
        distances=shortest_path_lengths(edges, len(nodes), virtual_edge_cutoff),
        input_index=0,
        class_weight_index=class_weights[0] if class_weights else None,
        class_bias_index=class_biases[0] if class_biases else None,
        more_class_indices=tuple(further),
        input_size=input_size,
        virtual_edge_cutoff=virtual_edge_cutoff,
        mode="native",
        attention=attention,
        kept_reasons={
            names[key]: role.kept_reason or KEPT_UNUSED for key, role in roles.items() if names[key] not in carried
        },
    )


def _parameter_roles(model: nn.Module, owners: Owners, uses: Mapping[int, Uses]) -> dict[int, Role]:
    num_prefix_tokens = getattr(model, "num_prefix_tokens", None)
    roles = {}
    for key, parameter in ((id(parameter), parameter) for parameter in model.parameters()):
        if key not in uses:
            roles[key] = Role(None, KEPT_UNUSED)
            continue
        path, owner = owners[key]
        roles[key] = parameter_role(owner, path.rpartition(".")[2], parameter, uses[key], num_prefix_tokens)
    return roles


# --- Size and order --------------------------------------------------------------------------------------------------


def _within_limit(flow: list[FlowNode]) -> list[FlowNode]:
    """Shrink the flow of a network that runs layers in long loops: first one node per parameter, then parameters only.

    A merged node stands where its first use stood, and edges that would then run backwards (the recurrence) go.
    """
    if len(flow) > MAX_NODES:
        flow = _merged(flow)
    if len(flow) > MAX_NODES:
        flow = _without_operations(flow)
    return flow


def _merged(flow: list[FlowNode]) -> list[FlowNode]:
    order = _order(flow)
    rank = {node: place for place, node in enumerate(order)}
    first_use: dict[int, int] = {}
    merged_into = {}
    for index in order:
        parameter = flow[index].parameter
        merged_into[index] = index if parameter is None else first_use.setdefault(id(parameter), index)
    sources: dict[int, set[int]] = {index: set() for index in merged_into.values()}
    for index in order:
        target = merged_into[index]
        candidates = {merged_into[source] for source in flow[index].sources}
        sources[target] |= {source for source in candidates if rank[source] < rank[target]}
    return _renumbered(flow, [index for index in order if index in sources], sources)


def _without_operations(flow: list[FlowNode]) -> list[FlowNode]:
    """Look through sums, concatenations and gates."""
    sources: dict[int, set[int]] = {}
    behind: dict[int, set[int]] = {}
    for index in _order(flow):
        found = set().union(*(behind[source] for source in flow[index].sources))
        is_kept = flow[index].parameter is not None or flow[index].primitive not in ("sum", "concat", "cse")
        behind[index] = {index} if is_kept else found
        if is_kept:
            sources[index] = found
    return _renumbered(flow, list(sources), sources)


def _sorted(flow: list[FlowNode]) -> list[FlowNode]:
    return _renumbered(flow, _order(flow), {index: node.sources for index, node in enumerate(flow)})


def _order(flow: list[FlowNode]) -> list[int]:
    successors: list[list[int]] = [[] for _ in flow]
    for index, node in enumerate(flow):
        for source in node.sources:
            successors[source].append(index)
    order = topological_order(successors)
    assert len(order) == len(flow), "the data flow of a forward pass has no cycles"
    return order


def _renumbered(flow: list[FlowNode], order: list[int], sources: Mapping[int, set[int]]) -> list[FlowNode]:
    place = {index: position for position, index in enumerate(order)}
    return [
        FlowNode(
            flow[index].primitive,
            flow[index].parameter,
            flow[index].function,
            {place[source] for source in sources[index]},
        )
        for index in order
    ]


# --- Features --------------------------------------------------------------------------------------------------------


def _describe(node: FlowNode, names: Mapping[int, str], owners: Owners) -> Node:
    if node.parameter is None:
        name = "input" if node.function is None else type(node.function).__name__
        shape = _window(node)
        return Node(node.primitive, shape, (), 0 if shape is not None else -1, name)
    path, owner = owners[id(node.parameter)]
    parameters = [node.parameter]
    if node.primitive in NORM_PRIMITIVES and (bias := norm_bias(owner)) is not None:
        parameters.append(bias)
    shape = tuple(node.parameter.shape)
    if node.primitive == "pos_enc" and len(shape) == 3:
        side = math.isqrt(shape[1])
        shape = (1, shape[2], side, side)
    elif node.primitive == "pos_enc" and is_channels_last_grid(shape):
        shape = (1, shape[3], *shape[1:3])
    carried = tuple(names[id(parameter)] for parameter in parameters)
    share = 1.0 if node.primitive == "bias" else tap_share(node.function)
    return Node(node.primitive, shape, carried, 0, path, share)


def _window(node: FlowNode) -> tuple[int, ...] | None:
    """Shape of a pooling node: its kernel."""
    kernel = getattr(node.function, "_saved_kernel_size", None) if node.primitive in POOLING_PRIMITIVES else None
    return (1, 1, kernel[-2], kernel[-1]) if kernel is not None and len(kernel) >= 2 else None


def _class_nodes(
    roots: list[Any], flow: list[FlowNode], model: nn.Module, owners: Owners
) -> tuple[list[int], list[int]]:
    """Return the nodes of the classifiers' weights and of their biases.

    In a model that declares none, a linear layer that emits the only output is the classifier.
    """
    layers = declared_class_layers(model)
    if layers is None:
        scoring_layer = _scoring_layer(roots, flow, owners)
        layers = () if scoring_layer is None else (scoring_layer,)
    first_use: dict[int, int] = {}
    for index, node in enumerate(flow):
        if node.parameter is not None:
            first_use.setdefault(id(node.parameter), index)
    weights: list[int] = []
    biases: list[int] = []
    for layer in layers:
        for name, found in (("weight", weights), ("bias", biases)):
            parameter = layer._parameters.get(name)
            if id(parameter) in first_use:
                found.append(first_use[id(parameter)])
    return weights, biases


def _scoring_layer(roots: list[Any], flow: list[FlowNode], owners: Owners) -> nn.Module | None:
    """Return the linear layer whose result is the model's only output, one row of scores per image."""
    if len(roots) != 1 or len(roots[0]._input_metadata[0].shape) != 2:
        return None
    last = behind_views(roots[0])
    for node in flow:
        if node.function is last and node.parameter is not None:
            owner = owners[id(node.parameter)][1]
            return owner if isinstance(owner, nn.Linear) else None
    return None
