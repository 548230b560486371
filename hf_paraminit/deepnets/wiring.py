"""The computational graph of a DeepNets-1M network straight from its description.

The wiring of a cell is known from its genotype, so neither modules nor a forward pass are needed: this takes a few
milliseconds where building and tracing the network takes a hundred. The nodes and edges are those that
`graphs.trace.trace` finds (arXiv 2110.13100, section 3, and appendix A); their order is the order of computation, stem
first and cell by cell, which is what the published files assume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_paraminit.deepnets.genotype import (
    NUM_INPUT_STATES,
    Genotype,
    parse_operation,
    reduction_cells,
)
from hf_paraminit.deepnets.network import CIFAR_SIDE, IMAGENET_SIDE, check_arguments
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.primitives import NORM_PRIMITIVES, POOLING_PRIMITIVES
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths

# A feature map is known by the node that computes it; None stands for one that nothing needs or nothing reaches.
Value = int | None

_JOINS = frozenset({"sum", "concat"})


@dataclass(frozen=True, slots=True)
class WiredNode:
    """One node.

    Attributes:
        primitive: Entry of `graphs.primitives.PRIMITIVES`.
        cell: Cell that computes it; the stem belongs to the first cell and the classifier to the last.
        name: Full name of the node's weight or bias; the primitive where it has none.
        shape: Shape of that parameter, (1, 1, 3, 3) of a pooling window, or None.
        inputs: Nodes that feed it, in increasing order.
    """

    primitive: str
    cell: int
    name: str
    shape: tuple[int, ...] | None
    inputs: tuple[int, ...]


@dataclass(eq=False)
class Wiring:
    """Nodes of a network in the order of computation, and how many parameters it has.

    Attributes:
        nodes: Those that the logits depend on; the first is the input, the last two are the classifier.
        num_parameters: Elements of all parameters, those of branches that lead nowhere included.
        num_cells: Cells of the network.
        side: Height and width of its images.
    """

    num_cells: int
    side: int
    nodes: list[WiredNode] = field(default_factory=list)
    num_parameters: int = 0

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Rows (source, target) in row-major order."""
        return sorted((source, target) for target, node in enumerate(self.nodes) for source in node.inputs)

    def to_nodes(self) -> tuple[Node, ...]:
        """Return the nodes of the graph, without its edges."""
        return tuple(_graph_node(node) for node in self.nodes)

    def to_graph(self, virtual_edge_cutoff: int = 50) -> ComputationalGraph:
        """Return the graph that a hypernetwork reads.

        Args:
            virtual_edge_cutoff: Longest path that gets a virtual edge, in hops.
        """
        num_nodes = len(self.nodes)
        edges = torch.tensor(self.edges, dtype=torch.int64).reshape(-1, 2)
        return ComputationalGraph(
            nodes=self.to_nodes(),
            edges=edges,
            distances=shortest_path_lengths(edges, num_nodes, virtual_edge_cutoff),
            input_index=0,
            class_weight_index=num_nodes - 2,
            class_bias_index=num_nodes - 1,
            num_cells=self.num_cells,
            input_size=(3, self.side, self.side),
            virtual_edge_cutoff=virtual_edge_cutoff,
        )


def wire(arguments: Mapping[str, Any]) -> Wiring:
    """Lay out the graph of the network with these constructor arguments.

    Args:
        arguments: Those of `DeepNetsNetwork`, without `auxiliary`.

    Raises:
        ArchitectureError: Arguments that contradict each other, or a genotype through which no path leads.
    """
    return _Wirer(**arguments).wire()


def parameters_of(name: str, primitive: str) -> tuple[str, ...]:
    """Names of the parameters of the node that is called `name`: a norm's bias shares the node of its weight."""
    if primitive in NORM_PRIMITIVES:
        return name, f"{name.removesuffix('weight')}bias"
    return (name,) if name.endswith((".weight", ".bias")) else ()


def _graph_node(node: WiredNode) -> Node:
    parameters = parameters_of(node.name, node.primitive)
    is_listed = bool(parameters) or node.primitive in POOLING_PRIMITIVES
    return Node(node.primitive, node.shape, parameters, node.cell if is_listed else -1, node.name)


class _Wirer:
    """Follows `DeepNetsNetwork` layer by layer. A layer whose input is None is counted but gets no node."""

    def __init__(
        self,
        C: int,
        num_classes: int,
        genotype: Genotype | Mapping[str, Any],
        n_cells: int,
        ks: int = 3,
        is_imagenet_input: bool = True,
        stem_pool: bool = False,
        stem_type: int = 0,
        imagenet_stride: int = 4,
        is_vit: bool | None = None,
        norm: str | None = "bn-track",
        preproc: bool = True,
        C_mult: int = 2,
        fc_layers: int = 0,
        fc_dim: int = 0,
        glob_avg: bool = True,
    ) -> None:
        self.genotype = genotype if isinstance(genotype, Genotype) else Genotype.from_dict(genotype)
        check_arguments(self.genotype, n_cells, stem_type, preproc, C_mult, fc_layers, fc_dim)
        self.channels, self.num_classes, self.num_cells, self.kernel = C, num_classes, n_cells, ks
        self.is_imagenet, self.stem_pool, self.stem_type = is_imagenet_input, stem_pool, stem_type
        self.stride = imagenet_stride
        self.is_vit = self.genotype.has_attention if is_vit is None else is_vit
        self.has_norm, self.preproc, self.growth = norm is not None, preproc, C_mult
        self.fc_layers, self.fc_dim, self.glob_avg = fc_layers, fc_dim, glob_avg
        self.live_cells = self.genotype.live_cells(n_cells, {n_cells - 1})
        self.reductions = reduction_cells(n_cells)
        self.wiring = Wiring(n_cells, IMAGENET_SIDE if is_imagenet_input else CIFAR_SIDE)
        self.cell = 0
        self.prefix = ""

    def wire(self) -> Wiring:
        image = self.node("input", "input", None, ())
        before_last, last, channels, side = self.stem(image)
        last, channels = self.cells(before_last, last, channels)
        if not self.is_vit:
            side //= 2 ** len(self.reductions)
        if self.glob_avg:
            last = self.operation("glob_avg", last)
        self.classifier(last, channels * (1 if self.glob_avg else side**2))
        return self.wiring

    # --- Nodes -------------------------------------------------------------------------------------------------------

    def node(self, primitive: str, name: str, shape: tuple[int, ...] | None, inputs: tuple[int, ...]) -> int:
        self.wiring.nodes.append(WiredNode(primitive, self.cell, name, shape, inputs))
        return len(self.wiring.nodes) - 1

    def operation(self, primitive: str, *inputs: Value, shape: tuple[int, ...] | None = None) -> Value:
        """A node without parameters; adding or joining a single map leaves it as it is."""
        sources = tuple(sorted({value for value in inputs if value is not None}))
        if not sources or (primitive in _JOINS and len(sources) == 1):
            return sources[0] if sources else None
        return self.node(primitive, primitive, shape, sources)

    def parameter(self, primitive: str, name: str, shape: tuple[int, ...], source: Value) -> Value:
        self.wiring.num_parameters += math.prod(shape) * (2 if primitive in NORM_PRIMITIVES else 1)
        if source is None:
            return None
        return self.node(primitive, f"{self.prefix}{name}", shape, (source,))

    def conv(
        self, name: str, source: Value, channels: int, in_channels: int, kernel: tuple[int, int] = (1, 1)
    ) -> Value:
        return self.parameter("conv", f"{name}.weight", (channels, in_channels, *kernel), source)

    def linear(self, name: str, source: Value, width: int, in_width: int) -> Value:
        weight = self.parameter("conv", f"{name}.weight", (width, in_width), source)
        return self.parameter("bias", f"{name}.bias", (width,), weight)

    def norm(self, name: str, source: Value, channels: int) -> Value:
        return self.parameter("bn", f"{name}.weight", (channels,), source) if self.has_norm else source

    # --- Stem and classifier -----------------------------------------------------------------------------------------

    def stem(self, image: int) -> tuple[Value, Value, int, int]:
        """Return the two inputs of the first cell, their width, and the side of the second."""
        channels, side = self.channels, self.wiring.side
        square = (self.kernel, self.kernel)
        if self.is_vit:
            patch, padding = (16, 0) if self.is_imagenet else (3, 1)
            side = (side + 2 * padding - patch) // patch + 1
            patches = self.conv("stem0", image, channels, 3, (patch, patch))
            table = self.node("pos_enc", "pos_enc.weight", (1, channels, side, side), ())
            self.wiring.num_parameters += channels * side**2
            embedded = self.operation("sum", patches, table)
            return embedded, embedded, channels, side
        if self.stem_type == 0:
            stride = self.stride if self.is_imagenet else 1
            channels *= 3 if self.preproc and not self.is_imagenet else 1
            value = self.norm("stem.1", self.conv("stem.0", image, channels, 3, square), channels)
            if self.stem_pool:
                value = self.operation("max_pool", value, shape=(1, 1, 3, 3))
            return value, value, channels, side // (2 * stride if self.stem_pool else stride)
        half = channels // 2
        value = self.norm("stem0.1", self.conv("stem0.0", image, half, 3, square), half)
        first = self.norm("stem0.4", self.conv("stem0.3", value, channels, half, (3, 3)), channels)
        needed = first if -1 in self.live_cells else None
        second = self.norm("stem1.2", self.conv("stem1.1", needed, channels, channels, (3, 3)), channels)
        return first, second, channels, side // (8 if self.is_imagenet else 2)

    def classifier(self, value: Value, features: int) -> None:
        self.cell, self.prefix = self.num_cells - 1, "classifier."
        num_hidden = max(self.fc_layers, 1) - 1
        for layer in range(num_hidden):
            value = self.linear(str(3 * layer), value, self.fc_dim, features)
            features = self.fc_dim
        self.linear(str(3 * num_hidden), value, self.num_classes, features)

    # --- Cells -------------------------------------------------------------------------------------------------------

    def cells(self, before_last: Value, last: Value, stem_channels: int) -> tuple[Value, int]:
        """Return the output of the last cell and its width."""
        channels = self.channels
        before_last_channels = last_channels = stem_channels
        follows_reduction = self.stem_type == 1
        for index in range(self.num_cells):
            self.cell, self.prefix = index, f"cells.{index}."
            is_reduction = index in self.reductions
            channels *= self.growth if is_reduction else 1
            is_live = index in self.live_cells
            states = self.genotype.live_states(is_reduction=is_reduction) if is_live else frozenset()
            inputs = [
                self.first_input(
                    before_last if 0 in states else None, before_last_channels, channels, follows_reduction
                ),
                self.second_input(last if 1 in states else None, last_channels, channels),
            ]
            output = self.steps(inputs, channels, states, is_reduction=is_reduction)
            width = channels * len(self.genotype.cell(is_reduction=is_reduction)[1])
            before_last, last = last, output
            before_last_channels, last_channels, follows_reduction = last_channels, width, is_reduction
        return last, last_channels

    def first_input(self, value: Value, in_channels: int, channels: int, follows_reduction: bool) -> Value:
        if not self.preproc:
            return value
        if follows_reduction and not self.is_vit:
            return self.factorized_reduce("preprocess0", value, channels, in_channels)
        return self.adapt("preprocess0", value, channels, in_channels)

    def second_input(self, value: Value, in_channels: int, channels: int) -> Value:
        return self.adapt("preprocess1", value, channels, in_channels) if self.preproc else value

    def adapt(self, name: str, value: Value, channels: int, in_channels: int) -> Value:
        return self.norm(f"{name}.op.2", self.conv(f"{name}.op.1", value, channels, in_channels), channels)

    def steps(self, states: list[Value], channels: int, live: frozenset[int], *, is_reduction: bool) -> Value:
        """Apply the steps of a cell to its inputs; return the concatenation of the chosen states."""
        connections, concat = self.genotype.cell(is_reduction=is_reduction)
        for first in range(0, len(connections), 2):
            is_live = len(states) in live
            results = []
            for position in (first, first + 1):
                name, state = connections[position]
                halves = is_reduction and not self.is_vit and state < NUM_INPUT_STATES
                source = states[state] if is_live else None
                results.append(self.connection(f"_ops.{position}", name, source, channels, halves=halves))
            states.append(self.operation("sum", *results))
        return self.operation("concat", *(states[state] for state in concat))

    def connection(self, name: str, operation: str, x: Value, channels: int, *, halves: bool) -> Value:
        match parse_operation(operation):
            case "none", _:
                return None
            case "skip_connect", _:
                return self.factorized_reduce(name, x, channels, channels) if halves else x
            case ("max_pool" | "avg_pool") as pooling, int(side):
                return self.operation(pooling, x, shape=(1, 1, side, side))
            case "conv", int(side):
                value = self.conv(f"{name}.op.1", x, channels, channels, (side, side))
                return self.norm(f"{name}.op.2", value, channels)
            case "conv2", int(side):
                value = self.conv(f"{name}.op.1", x, channels, channels, (1, side))
                value = self.conv(f"{name}.op.2", value, channels, channels, (side, 1))
                return self.norm(f"{name}.op.3", value, channels)
            case "sep_conv", int(side):
                value = self.separable("sep_conv", f"{name}.op", 1, x, channels, side)
                return self.separable("sep_conv", f"{name}.op", 5, value, channels, side)
            case "dil_conv", int(side):
                return self.separable("dil_conv", f"{name}.op", 1, x, channels, side)
            case "msa", _:
                return self.transformer_block(name, x, channels)
            case "cse", _:
                return self.squeeze_excite(name, x, channels)
        raise AssertionError(f"operation {operation!r} has no wiring")

    def factorized_reduce(self, name: str, x: Value, channels: int, in_channels: int) -> Value:
        half = channels // 2
        first = self.conv(f"{name}.conv_1", x, half, in_channels)
        second = self.conv(f"{name}.conv_2", x, channels - half, in_channels)
        return self.norm(f"{name}.bn", self.operation("concat", first, second), channels)

    def separable(self, primitive: str, name: str, position: int, x: Value, channels: int, side: int) -> Value:
        value = self.parameter(primitive, f"{name}.{position}.weight", (channels, 1, side, side), x)
        value = self.conv(f"{name}.{position + 1}", value, channels, channels)
        return self.norm(f"{name}.{position + 2}", value, channels)

    def squeeze_excite(self, name: str, x: Value, channels: int) -> Value:
        gate = self.linear(f"{name}.fc1", x, channels // 2, channels)
        return self.operation("cse", x, self.linear(f"{name}.fc2", gate, channels, channels // 2))

    def transformer_block(self, name: str, x: Value, channels: int) -> Value:
        value = self.parameter("ln", f"{name}.ln1.weight", (channels,), x)
        value = self.parameter("conv", f"{name}.attn.to_qkv.weight", (3 * channels, channels), value)
        value = self.linear(f"{name}.attn.to_out.0", self.operation("msa", value), channels, channels)
        x = self.operation("sum", x, value)
        value = self.parameter("ln", f"{name}.ln2.weight", (channels,), x)
        for position in (0, 3):
            value = self.linear(f"{name}.ff.net.{position}", value, channels, channels)
        return self.operation("sum", x, value)
