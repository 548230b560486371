"""Graphs laid out from descriptions against traced graphs, recorded graphs and built networks."""

import json
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from graph_goldens import GOLDEN, KEYS

from hf_paraminit.deepnets.genotype import DARTS, VIT, ArchitectureError, Genotype
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.sampling import ArchitectureSpace, sample_network_arguments
from hf_paraminit.deepnets.wiring import wire
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace

SMALL = ArchitectureSpace(min_cells=1, max_cells=6, widths=(16,), classifier_widths=(24,))


def draw(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [sample_network_arguments(rng, SMALL, is_imagenet_input=index % 3 == 0) for index in range(count)]


def build_on_meta(arguments: dict[str, Any]) -> DeepNetsNetwork:
    with torch.device("meta"):
        return DeepNetsNetwork(**arguments)


def labelled(graph: ComputationalGraph, *, with_cells: bool = True) -> networkx.DiGraph:
    """Nodes without parameters keep their primitive as the only label, so any renumbering is allowed."""
    labels = networkx.DiGraph(graph.edges.tolist())
    for index, node in enumerate(graph.nodes):
        details = (node.shape, node.cell) if with_cells and node.parameters else ()
        labels.add_node(index, label=str((node.primitive, node.parameters, *details)))
    return labels


def are_equal(first: ComputationalGraph, second: ComputationalGraph, **options: Any) -> bool:
    return networkx.vf2pp_is_isomorphic(labelled(first, **options), labelled(second, **options), node_label="label")


def has_gate(arguments: dict[str, Any]) -> bool:
    return "cse" in Genotype.from_dict(arguments["genotype"]).operations


def test_parameters_are_those_of_the_network() -> None:
    for arguments in draw(12):
        network = dict(build_on_meta(arguments).named_parameters())
        wiring = wire(arguments)
        assert wiring.num_parameters == sum(parameter.numel() for parameter in network.values())
        for node in wiring.to_graph().nodes:
            assert all(tuple(network[name].shape) == node.shape for name in node.parameters)


def test_graphs_equal_traced_ones() -> None:
    plain = [arguments for arguments in draw(25, seed=1) if not has_gate(arguments)]
    assert len(plain) > 10
    for arguments in plain[:10]:
        traced, laid_out = trace(build_on_meta(arguments)), wire(arguments).to_graph()
        assert are_equal(traced, laid_out)
        assert sorted(traced.distances.flatten().tolist()) == sorted(laid_out.distances.flatten().tolist())
        assert laid_out.class_weight_index == len(laid_out) - 2 == traced.class_weight_index
        assert (laid_out.num_cells, laid_out.input_index, laid_out.input_size) == (
            traced.num_cells,
            traced.input_index,
            traced.input_size,
        )


def test_channel_attention_always_has_its_node() -> None:
    """The rules of published graphs (compat) miss some of these nodes, native ones do not."""
    gated = [arguments for arguments in draw(25, seed=2) if has_gate(arguments)]
    assert len(gated) > 5
    for arguments in gated[:5]:
        native = trace(build_on_meta(arguments), mode="native")
        assert are_equal(native, wire(arguments).to_graph(), with_cells=False)


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("geno")])
def test_graphs_equal_recorded_ones(key: str) -> None:
    record = json.loads((GOLDEN / f"{key}.json").read_text())
    arguments = {name: value for name, value in record["build"].items() if name != "kind"}
    graph = wire(arguments).to_graph()
    arrays = np.load(GOLDEN / f"{key}.npz")
    recorded = networkx.DiGraph(arrays["edges_1hop"].tolist())
    for index, (primitive, name, is_parameter) in enumerate(
        zip(record["op"], record["raw_name"], record["is_param"], strict=True)
    ):
        recorded.add_node(index, label=f"{primitive} {name}" if is_parameter else primitive)
    found = networkx.DiGraph(graph.edges.tolist())
    for index, node in enumerate(graph.nodes):
        found.add_node(index, label=f"{node.primitive} {node.parameters[0]}" if node.parameters else node.primitive)
    gates = [index for index, node in enumerate(graph.nodes) if node.primitive == "cse"]
    if len(gates) == record["op"].count("cse"):
        assert networkx.vf2pp_is_isomorphic(recorded, found, node_label="label")
        assert sorted(graph.distances.flatten().tolist()) == sorted(arrays["dist"].flatten().tolist())
    else:  # the reference missed some
        others = [label for _, label in found.nodes(data="label") if label != "cse"]
        assert sorted(others) == sorted(label for _, label in recorded.nodes(data="label") if label != "cse")


def test_some_recorded_graphs_are_compared_in_full() -> None:
    ops = {key: json.loads((GOLDEN / f"{key}.json").read_text())["op"] for key in KEYS if key.startswith("geno")}
    assert sum("cse" not in op for op in ops.values()) >= 6


def test_nodes_are_in_the_order_of_computation_cell_by_cell() -> None:
    for arguments in draw(10, seed=3):
        wiring = wire(arguments)
        assert all(source < target for source, target in wiring.edges)
        cells = [node.cell for node in wiring.nodes]
        assert cells == sorted(cells)
        assert wiring.nodes[0].primitive == "input"
        assert [node.name.partition(".")[0] for node in wiring.nodes[-2:]] == ["classifier"] * 2


def test_joining_one_map_makes_no_node() -> None:
    twice = Genotype((("skip_connect", 0), ("skip_connect", 1)), (2,), (("max_pool_3x3", 0), ("none", 1)), (2,))
    arguments = {"genotype": twice, "C": 16, "num_classes": 5, "n_cells": 1, "preproc": False, "C_mult": 1}
    graph = wire(arguments).to_graph()
    assert are_equal(graph, trace(build_on_meta(arguments)))
    assert "sum" not in graph.primitives


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genotype": Genotype((("none", 0), ("none", 1)), (2,), VIT.reduce, (2,))}, "cut every path"),
        ({"preproc": False}, "Pass preproc=True"),
        ({"n_cells": 0}, "at least one cell"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    arguments = {"C": 16, "num_classes": 5, "genotype": DARTS, "n_cells": 3}
    with pytest.raises(ArchitectureError, match=message):
        wire(arguments | change)
