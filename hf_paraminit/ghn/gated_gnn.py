"""The gated graph network of GHN-1 and GHN-2 (arXiv 2110.13100, equations 3 and 4), and the MLP baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_paraminit.ghn.config import GHNConfig

# Legend: B graphs, N nodes (padded), V = B * N rows of all graphs, d hidden width.


class NodeMLP(nn.Module):
    """Two linear maps, each followed by ReLU."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, inner_dim), nn.ReLU(), nn.Linear(inner_dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class MLPNetwork(NodeMLP):
    """Baseline that maps each node on its own and ignores the edges."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor, distances: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Map (B, N, d) node features."""
        return self.fc(x)


class GatedGNN(nn.Module):
    """One forward and one backward sweep over the nodes with a GRU cell.

    A node's message is the sum of f(h_u) over its one-hop neighbours u, plus, with virtual edges, the sum of g(h_u) / s
    over all nodes u at path length s. States change in place during a sweep; nodes that cannot influence each other
    are updated together, which leaves the result as if they had been visited one by one in index order.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.has_virtual_edges = config.virtual_edge_cutoff > 1
        # The published GHN-1 keeps the full inner width; GHN-2 halves it to make room for the second map.
        inner_dim = dim // 2 if self.has_virtual_edges else dim
        self.mlp = NodeMLP(dim, inner_dim)
        if self.has_virtual_edges:
            self.mlp_ve = NodeMLP(dim, inner_dim)
        self.gru = nn.GRUCell(dim, dim)

    def forward(self, x: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
        """Update node states.

        Args:
            x: (B, N, d) node features.
            distances: (B, N, N) int64 path lengths in hops.
            mask: (B, N) bool; unused, since padding has no edges.

        Returns:
            (B, N, d); rows of padding are meaningless.
        """
        states = x.flatten(0, 1)
        schedule = _visiting_order(distances.cpu())
        incoming = distances.transpose(1, 2)
        states = self._sweep(states, incoming, schedule)
        states = self._sweep(states, distances, schedule[::-1])
        return states.view_as(x)

    def _sweep(self, states: Tensor, lengths: Tensor, schedule: list[Tensor]) -> Tensor:
        """Visit groups of rows in turn; `lengths[b, v, u]` is the path length between v and its neighbour u."""
        num_graphs, num_nodes = lengths.shape[:2]
        is_edge = (lengths == 1).to(states.dtype)
        inverse_length = torch.where(lengths > 0, 1.0 / lengths.clamp(min=1), 0.0).to(states.dtype)
        near = self.mlp(states)
        far = self.mlp_ve(states) if self.has_virtual_edges else near
        for rows in schedule:
            rows = rows.to(states.device)
            graph, node = rows // num_nodes, rows % num_nodes
            message = _gather_messages(is_edge[graph, node], near.view(num_graphs, num_nodes, -1)[graph])
            if self.has_virtual_edges:
                far_states = far.view(num_graphs, num_nodes, -1)[graph]
                message = message + _gather_messages(inverse_length[graph, node], far_states)
            updated = self.gru(message, states[rows])
            states = states.index_copy(0, rows, updated)
            near = near.index_copy(0, rows, self.mlp(updated))
            if self.has_virtual_edges:
                far = far.index_copy(0, rows, self.mlp_ve(updated))
        return states


def _gather_messages(weights: Tensor, states: Tensor) -> Tensor:
    """Sum (K, N, d) states with (K, N) weights into (K, d)."""
    return torch.bmm(weights.unsqueeze(1), states).squeeze(1)


def _visiting_order(distances: Tensor) -> list[Tensor]:
    """Group the rows of all graphs so that no node shares a group with one it exchanges messages with.

    Every graph visits its nodes 0..(largest edge target) in index order, as published. A node waits for all smaller
    indices it is joined with, in either direction, so the grouping is also right for graphs with cycles.
    """
    num_nodes = distances.shape[1]
    groups: dict[int, list[int]] = {}
    for graph_index, lengths in enumerate(distances):
        is_joined = (lengths > 0) | (lengths.T > 0)
        targets = (lengths > 0).any(0).nonzero()
        last = int(targets.max()) if len(targets) else -1
        level = torch.zeros(num_nodes, dtype=torch.int64)
        for node in range(last + 1):
            earlier = level[:node][is_joined[node, :node]]
            level[node] = int(earlier.max()) + 1 if len(earlier) else 0
            groups.setdefault(int(level[node]), []).append(graph_index * num_nodes + node)
    return [torch.tensor(groups[index]) for index in sorted(groups)]
