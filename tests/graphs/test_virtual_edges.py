import networkx
import numpy as np
import pytest
import torch

from hf_paraminit.graphs.ordering import topological_order
from hf_paraminit.graphs.virtual_edges import shortest_path_lengths


def reference(graph: networkx.DiGraph, cutoff: int) -> np.ndarray:
    hops = np.zeros((len(graph), len(graph)), dtype=np.int64)
    for source, lengths in networkx.all_pairs_shortest_path_length(graph, cutoff=cutoff):
        for target, length in lengths.items():
            hops[source, target] = length
    return hops


@pytest.mark.parametrize("is_acyclic", [True, False])
@pytest.mark.parametrize("cutoff", [1, 3, 50])
def test_lengths_equal_networkx(is_acyclic, cutoff):
    for seed in range(40):
        graph = networkx.gnm_random_graph(1 + seed, 2 * seed, directed=True, seed=seed)
        if is_acyclic:
            graph.remove_edges_from([(u, v) for u, v in graph.edges if u > v])
        edges = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2)
        found = shortest_path_lengths(edges, len(graph), cutoff)
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found.numpy(), reference(graph, cutoff))


def test_one_long_cycle_in_either_direction_of_numbering():
    for step in (1, -1):
        edges = torch.tensor([(node, (node + step) % 60) for node in range(60)])
        hops = shortest_path_lengths(edges, 60, 50)
        assert hops[0, (7 * step) % 60] == 7
        assert hops[0, (50 * step) % 60] == 50
        assert hops[0, (51 * step) % 60] == 0


def test_no_edges():
    assert shortest_path_lengths(torch.empty(0, 2, dtype=torch.int64), 3, 50).tolist() == [[0] * 3] * 3


def test_topological_order_equals_networkx():
    for seed in range(40):
        graph = networkx.gnm_random_graph(30, 60, directed=True, seed=seed)
        graph.remove_edges_from([(u, v) for u, v in graph.edges if u > v])
        renumbered = networkx.relabel_nodes(graph, {node: 29 - node for node in graph})
        matrix = networkx.to_numpy_array(renumbered, nodelist=range(30))
        successors = [np.flatnonzero(row).tolist() for row in matrix]
        assert topological_order(successors) == list(networkx.topological_sort(networkx.DiGraph(matrix)))


def test_topological_order_leaves_out_what_a_cycle_holds_up():
    assert topological_order([[1], [2], [1, 3], []]) == [0]
