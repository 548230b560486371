"""The computational graph of a network, as graph hypernetworks read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_paraminit.graphs.virtual_edges import shortest_path_lengths

if TYPE_CHECKING:
    import networkx

# Legend: N nodes, M directed edges of one hop.


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the network, or the parameters that stand for it.

    Attributes:
        primitive: Entry of `primitives.PRIMITIVES` that types the node.
        shape: Shape of the node's first parameter as the graph stores it (a position table (1, a, b) appears as
            (1, b, s, s)), (1, 1, kh, kw) of a pooling window, or None.
        parameters: Names as in `named_parameters()`, weight first. A norm layer's weight and bias share one node.
        cell: Cell of the network that lists the node as a parameter or pooling node, -1 when none does.
        name: Parameter path or autograd operation that the node was made from.
        tap_share: Share of a convolution's taps that fall on the map rather than on its zero padding; 1 for all other
            nodes, and in graphs that do not say.
    """

    primitive: str
    shape: tuple[int, ...] | None
    parameters: tuple[str, ...]
    cell: int
    name: str
    tap_share: float = 1.0


@dataclass(frozen=True, eq=False)
class ComputationalGraph:
    """Directed graph of a network's data flow (GHN-2, arXiv 2110.13100, section 2.1).

    Attributes:
        nodes: N nodes; every edge runs from an earlier to a later one unless the network re-uses a layer.
        edges: (M, 2) int64 rows (source, target) of the one-hop edges, in row-major order.
        distances: (N, N) int64 shortest directed path lengths in hops, 1 for edges, more for virtual edges,
            0 where no path exists or the path is longer than `virtual_edge_cutoff`, and on the diagonal.
        input_index: Index of the `input` node.
        class_weight_index: Node that holds the weight of the final classifier, or None.
        class_bias_index: Node that holds its bias, or None.
        num_cells: Number of cells the network declares (1 for ordinary networks).
        input_size: (channels, height, width) of the traced sample.
        virtual_edge_cutoff: Longest path kept in `distances`, in hops.
        mode: How the graph was made: "compat" or "native".
        attention: "explicit" when attention shows its softmax (`msa` nodes), "fused" when it does not.
        warnings: What a reader of the graph should know.
        more_class_indices: Nodes of further classifiers, which distilled models have.
        kept_reasons: Why a parameter has no node, by name; only native graphs say.
        used_values: Whether tracing had to compute with the values of the weights.
    """

    nodes: tuple[Node, ...]
    edges: Tensor
    distances: Tensor
    input_index: int
    class_weight_index: int | None = None
    class_bias_index: int | None = None
    num_cells: int = 1
    input_size: tuple[int, ...] | None = None
    virtual_edge_cutoff: int = 50
    mode: str = "compat"
    attention: str = "explicit"
    warnings: tuple[str, ...] = field(default=())
    more_class_indices: tuple[int, ...] = ()
    kept_reasons: Mapping[str, str] = field(default_factory=dict)
    used_values: bool = False

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def primitives(self) -> tuple[str, ...]:
        """The primitive of each node, in order."""
        return tuple(node.primitive for node in self.nodes)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """All parameter names that some node carries, in node order."""
        return tuple(name for node in self.nodes for name in node.parameters)

    def to_networkx(self) -> networkx.DiGraph:
        """Return the one-hop graph; nodes carry `primitive`, `shape`, `parameters`, `cell`, `name`."""
        import networkx

        graph = networkx.DiGraph(mode=self.mode, attention=self.attention, input_index=self.input_index)
        for index, node in enumerate(self.nodes):
            graph.add_node(
                index,
                primitive=node.primitive,
                shape=node.shape,
                parameters=node.parameters,
                cell=node.cell,
                name=node.name,
            )
        graph.add_edges_from(self.edges.tolist())
        return graph

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: nodes and one-hop edges; `distances` is recomputed by `from_dict`."""
        return {
            "nodes": [
                {
                    "primitive": node.primitive,
                    "shape": list(node.shape) if node.shape is not None else None,
                    "parameters": list(node.parameters),
                    "cell": node.cell,
                    "name": node.name,
                    "tap_share": node.tap_share,
                }
                for node in self.nodes
            ],
            "edges": self.edges.tolist(),
            "input_index": self.input_index,
            "class_weight_index": self.class_weight_index,
            "class_bias_index": self.class_bias_index,
            "num_cells": self.num_cells,
            "input_size": list(self.input_size) if self.input_size is not None else None,
            "virtual_edge_cutoff": self.virtual_edge_cutoff,
            "mode": self.mode,
            "attention": self.attention,
            "warnings": list(self.warnings),
            "more_class_indices": list(self.more_class_indices),
            "kept_reasons": dict(self.kept_reasons),
            "used_values": self.used_values,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ComputationalGraph:
        """Rebuild a graph from `to_dict()`; distances are computed anew from the edges."""
        nodes = tuple(
            Node(
                primitive=node["primitive"],
                shape=tuple(node["shape"]) if node["shape"] is not None else None,
                parameters=tuple(node["parameters"]),
                cell=node["cell"],
                name=node["name"],
                tap_share=node.get("tap_share", 1.0),
            )
            for node in record["nodes"]
        )
        edges = torch.tensor(record["edges"], dtype=torch.int64).reshape(-1, 2)
        cutoff = record["virtual_edge_cutoff"]
        return cls(
            nodes=nodes,
            edges=edges,
            distances=shortest_path_lengths(edges, len(nodes), cutoff),
            input_index=record["input_index"],
            class_weight_index=record["class_weight_index"],
            class_bias_index=record["class_bias_index"],
            num_cells=record["num_cells"],
            input_size=tuple(record["input_size"]) if record["input_size"] is not None else None,
            virtual_edge_cutoff=cutoff,
            mode=record["mode"],
            attention=record["attention"],
            warnings=tuple(record["warnings"]),
            more_class_indices=tuple(record.get("more_class_indices", ())),
            kept_reasons=dict(record.get("kept_reasons", {})),
            used_values=record.get("used_values", False),
        )
