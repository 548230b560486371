"""Traced graphs against those of the reference GHN-3 graph builder (arXiv 2303.04143)."""

import json

import numpy as np
import pytest
from graph_goldens import GOLDEN, KEYS, build

from hf_paraminit.graphs.compat import node_info
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace

# The reference shows today's fused CPU attention, except where the key says otherwise; only ViT has any.
FUSED_KEYS = {"tv_vit_b_16"}


def shape_table(graph: ComputationalGraph) -> np.ndarray:
    table = np.full((len(graph), 5), -1)
    for index, node in enumerate(graph.nodes):
        if node.shape is not None:
            table[index, : len(node.shape) + 1] = (len(node.shape), *node.shape)
    return table


def without_version(name: str) -> str:
    return name.split("Backward")[0]


def test_all_reference_graphs_are_there():
    assert len(KEYS) == 39
    assert set(KEYS) > FUSED_KEYS


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("key", KEYS)
def test_graph_equals_reference(key):
    record = json.loads((GOLDEN / f"{key}.json").read_text())
    arrays = np.load(GOLDEN / f"{key}.npz")
    model = build(record).train(record["mode"] == "train")

    graph = trace(model, attention="fused" if key in FUSED_KEYS else "explicit")

    assert list(graph.primitives) == record["op"]
    assert [without_version(node.name) for node in graph.nodes] == [
        without_version(name) for name in record["raw_name"]
    ]
    np.testing.assert_array_equal(shape_table(graph), arrays["node_shape"])
    np.testing.assert_array_equal(graph.distances.numpy(), arrays["dist"])
    np.testing.assert_array_equal(graph.distances[0].numpy(), arrays["input_dist"])
    np.testing.assert_array_equal(graph.edges.numpy(), arrays["edges_1hop"])
    assert [node.cell for node in graph.nodes] == arrays["cell"].tolist()
    assert node_info(graph) == record["node_info"]
    assert (graph.num_cells, graph.input_index) == (record["n_cells"], record["input_index"])
    assert list(graph.input_size) == record["expected_input"]


@pytest.mark.parametrize("key", [key for key in KEYS if key not in FUSED_KEYS and key.startswith("tv_s")])
def test_fused_mode_changes_nothing_without_fused_attention(key):
    record = json.loads((GOLDEN / f"{key}.json").read_text())
    graph = trace(build(record), attention="fused")
    assert list(graph.primitives) == record["op"]
    np.testing.assert_array_equal(graph.distances.numpy(), np.load(GOLDEN / f"{key}.npz")["dist"])


@pytest.mark.parametrize("key", KEYS)
def test_parameters_of_nodes_follow_the_reference_table(key):
    """Weight first; norm nodes carry their bias too; every name exists in the model."""
    record = json.loads((GOLDEN / f"{key}.json").read_text())
    model = build(record).train(record["mode"] == "train")
    known = dict(model.named_parameters())
    graph = trace(model, attention="fused" if key in FUSED_KEYS else "explicit")
    for node, is_param in zip(graph.nodes, record["is_param"], strict=True):
        has_parameter = is_param and node.primitive not in ("max_pool", "avg_pool")
        assert bool(node.parameters) == has_parameter
        assert set(node.parameters) <= set(known)
        if node.primitive in ("bn", "ln"):
            stem = node.name.removesuffix("weight")
            assert node.parameters == tuple(name for name in (stem + "weight", stem + "bias") if name in known)
        elif has_parameter:
            assert node.parameters == (node.name.removeprefix("."),)
    assert len(set(graph.parameter_names)) == len(graph.parameter_names)
