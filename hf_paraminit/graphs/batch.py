"""Several computational graphs side by side: the meta-batch of a graph hypernetwork."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.primitives import PRIMITIVE_INDEX

# Legend: B graphs, N nodes of the largest one.


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Padded arrays of B graphs.

    Attributes:
        graphs: The graphs, in order.
        primitives: (B, N) int64 vocabulary indices, 0 on padding.
        distances: (B, N, N) int64 path lengths in hops, 0 on padding.
        mask: (B, N) bool, True on real nodes.
    """

    graphs: tuple[ComputationalGraph, ...]
    primitives: Tensor
    distances: Tensor
    mask: Tensor

    @classmethod
    def from_graphs(cls, graphs: Sequence[ComputationalGraph], *, cutoff: int) -> GraphBatch:
        """Pad and stack; paths longer than `cutoff` hops count as none."""
        size = max(len(graph) for graph in graphs)
        primitives = torch.zeros(len(graphs), size, dtype=torch.int64)
        distances = torch.zeros(len(graphs), size, size, dtype=torch.int64)
        mask = torch.zeros(len(graphs), size, dtype=torch.bool)
        for row, graph in enumerate(graphs):
            num_nodes = len(graph)
            primitives[row, :num_nodes] = torch.tensor([PRIMITIVE_INDEX[name] for name in graph.primitives])
            distances[row, :num_nodes, :num_nodes] = graph.distances.masked_fill(graph.distances > cutoff, 0)
            mask[row, :num_nodes] = True
        return cls(tuple(graphs), primitives, distances, mask)

    def to(self, device: torch.device) -> GraphBatch:
        """Move the arrays."""
        return GraphBatch(self.graphs, self.primitives.to(device), self.distances.to(device), self.mask.to(device))
