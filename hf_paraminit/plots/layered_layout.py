"""Where the nodes of a long, mostly sequential graph go on a page.

A network is a chain with short branches, hundreds of nodes long. Its nodes are ordered by depth, side branches get
lanes of their own, and the chain is wrapped like a snake: rows run to the right and to the left in turn, so that the
end of a row is next to the start of the following one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Legend: N nodes, M edges.

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayeredLayout:
    """Grid places of N nodes.

    Attributes:
        depths: (N,) longest path from a source, in hops.
        lanes: (N,) 0 for the main chain, more for branches beside it; nodes of equal depth have different lanes.
        rows: (N,) row of the page, from the top.
        columns: (N,) column of the page, from the left.
        num_columns: columns per row.
        lanes_per_row: lanes that each row needs.
    """

    depths: Ints
    lanes: Ints
    rows: Ints
    columns: Ints
    num_columns: int
    lanes_per_row: Ints


def lay_out(num_nodes: int, edges: Ints, *, column_pitch: float, lane_pitch: float, row_gap: float) -> LayeredLayout:
    """Place the nodes of a graph so that the page has about the proportions of a screen.

    Args:
        num_nodes: N, at least 1.
        edges: (M, 2) rows (source, target). Edges to an earlier node, as a re-used layer has, do not count for depths.
        column_pitch: distance of two columns, in any unit.
        lane_pitch: distance of two lanes, in the same unit.
        row_gap: space between two rows beside their lanes, in the same unit.
    """
    forward = edges[edges[:, 0] < edges[:, 1]]
    depths = _depths(num_nodes, forward)
    lanes = _lanes(depths, forward)
    num_columns = _num_columns(depths, lanes, column_pitch=column_pitch, lane_pitch=lane_pitch, row_gap=row_gap)
    rows, places = np.divmod(depths, num_columns)
    return LayeredLayout(
        depths=depths,
        lanes=lanes,
        rows=rows,
        columns=np.where(rows % 2 == 0, places, num_columns - 1 - places),
        num_columns=num_columns,
        lanes_per_row=_lanes_per_row(rows, lanes),
    )


def _depths(num_nodes: int, forward: Ints) -> Ints:
    """Longest path from node 0 or another source; a source that only feeds a late node stands right before it."""
    depths = np.zeros(num_nodes, np.int64)
    for source, target in forward[np.argsort(forward[:, 1], kind="stable")]:
        depths[target] = max(depths[target], depths[source] + 1)
    side_sources = sorted(set(forward[:, 0].tolist()) - set(forward[:, 1].tolist()) - {0})
    for node in side_sources:
        depths[node] = max(0, min(depths[forward[forward[:, 0] == node, 1]]) - 1)
    return depths


def _lanes(depths: Ints, forward: Ints) -> Ints:
    """Of the nodes at one depth, the one with the longest way to go continues straight, the others step aside."""
    num_nodes = len(depths)
    remaining = np.zeros(num_nodes, np.int64)
    for source, target in forward[np.argsort(-forward[:, 0], kind="stable")]:
        remaining[source] = max(remaining[source], remaining[target] + 1)
    predecessors: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in forward:
        predecessors[target].append(int(source))
    lanes = np.zeros(num_nodes, np.int64)
    taken: dict[int, set[int]] = {}
    for node in np.lexsort((np.arange(num_nodes), -remaining, depths)):
        wanted = min((int(lanes[source]) for source in predecessors[node]), default=0)
        occupied = taken.setdefault(int(depths[node]), set())
        free = (lane for lane in range(len(occupied) + wanted + 1) if lane not in occupied)
        lanes[node] = min(free, key=lambda lane: (abs(lane - wanted), lane))
        occupied.add(int(lanes[node]))
    return lanes


def _lanes_per_row(rows: Ints, lanes: Ints) -> Ints:
    counts = np.ones(int(rows.max()) + 1, np.int64)
    np.maximum.at(counts, rows, lanes + 1)
    return counts


def _num_columns(depths: Ints, lanes: Ints, *, column_pitch: float, lane_pitch: float, row_gap: float) -> int:
    """The number of columns whose page comes closest to 16:10."""

    def misfit(num_columns: int) -> float:
        heights = _lanes_per_row(depths // num_columns, lanes) * lane_pitch + row_gap
        return float(abs(np.log(num_columns * column_pitch / heights.sum() / 1.6)))

    return min(range(1, int(depths.max()) + 2), key=misfit)
