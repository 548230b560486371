"""Orders of the nodes of a directed graph that is given by the successors of each node."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence


def topological_order(successors: Sequence[Collection[int]]) -> list[int]:
    """Sort nodes generation by generation (the order of networkx >= 2.6).

    The nodes that nothing points to come first, by increasing index; a node joins the queue when its last predecessor
    has been taken, successors being visited by increasing index.

    Args:
        successors: For each node, the nodes its edges point to.

    Returns:
        Node indices; those on or behind a cycle are missing.
    """
    num_incoming = [0] * len(successors)
    for targets in successors:
        for target in targets:
            num_incoming[target] += 1
    queue = deque(node for node, incoming in enumerate(num_incoming) if not incoming)
    order = []
    while queue:
        node = queue.popleft()
        order.append(node)
        for target in sorted(successors[node]):
            num_incoming[target] -= 1
            if not num_incoming[target]:
                queue.append(target)
    return order


def sinks_first(successors: Sequence[Sequence[int]]) -> list[int]:
    """Return all nodes in depth-first post-order: each behind everything it leads to, as far as cycles allow."""
    order: list[int] = []
    is_found = [False] * len(successors)
    for root in range(len(successors)):
        stack = [] if is_found[root] else [(root, iter(successors[root]))]
        is_found[root] = True
        while stack:
            node, targets = stack[-1]
            following = next((target for target in targets if not is_found[target]), None)
            if following is None:
                order.append(node)
                stack.pop()
            else:
                is_found[following] = True
                stack.append((following, iter(successors[following])))
    return order
