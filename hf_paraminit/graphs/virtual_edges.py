"""Shortest directed path lengths: the virtual edges of GHN-2 (arXiv 2110.13100, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_paraminit.graphs.ordering import sinks_first

# Legend: N nodes, M edges.

_UNREACHABLE = np.iinfo(np.int16).max - 1  # one more still fits


def shortest_path_lengths(edges: Tensor, num_nodes: int, cutoff: int) -> Tensor:
    """Label every ordered pair of nodes that a directed path joins with the length of the shortest one.

    Args:
        edges: (M, 2) int64 rows (source, target).
        num_nodes: N.
        cutoff: Longest path that is kept, in hops; below 32766.

    Returns:
        (N, N) int64 in 0..cutoff: 1 for real edges, more for virtual ones, 0 for none and on the diagonal.
    """
    successors: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in edges.reshape(-1, 2).tolist():
        successors[source].append(target)
    order = sinks_first(successors)
    rank = {node: place for place, node in enumerate(order)}
    is_acyclic = all(rank[target] < rank[source] for source in order for target in successors[source])

    hops = np.full((num_nodes, num_nodes), _UNREACHABLE, dtype=np.int16)
    np.fill_diagonal(hops, 0)
    # From the sinks up, one sweep is final; cycles need sweeps until nothing gets shorter.
    while True:
        before = None if is_acyclic else hops.copy()
        _sweep(hops, successors, order)
        if before is None or np.array_equal(before, hops):
            break
    hops[hops > cutoff] = 0
    return torch.from_numpy(hops.astype(np.int64))


def _sweep(hops: NDArray[np.int16], successors: Sequence[Sequence[int]], order: Iterable[int]) -> None:
    """Lower each node's row to one more than the least of its successors' rows."""
    for node in order:
        for successor in successors[node]:
            np.minimum(hops[node], hops[successor] + np.int16(1), out=hops[node])
