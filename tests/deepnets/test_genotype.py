"""Genotypes: JSON form, operation names, connectivity against networkx, and refusals."""

import json
from typing import Any

import networkx
import numpy as np
import pytest

from hf_paraminit.deepnets.genotype import (
    DARTS,
    NAMED_GENOTYPES,
    OPERATIONS,
    VIT,
    ArchitectureError,
    Genotype,
    parse_operation,
    reduction_cells,
)
from hf_paraminit.deepnets.sampling import sample_genotype
from hf_paraminit.errors import ParamInitError


@pytest.mark.parametrize("name", NAMED_GENOTYPES)
def test_json_round_trip(name: str) -> None:
    genotype = NAMED_GENOTYPES[name]
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


def test_lists_and_tuples_give_equal_hashable_genotypes() -> None:
    from_lists = Genotype(
        normal=[["msa", 0], ["none", 1]], normal_concat=[2], reduce=[["cse", 1]] * 2, reduce_concat=[2]
    )
    from_tuples = Genotype((("msa", 0), ("none", 1)), (2,), (("cse", 1),) * 2, (2,))
    assert from_lists == from_tuples
    assert len({from_lists, from_tuples}) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", ("none", None)),
        ("max_pool_3x3", ("max_pool", 3)),
        ("avg_pool_3x3", ("avg_pool", 3)),
        ("skip_connect", ("skip_connect", None)),
        ("sep_conv_3x3", ("sep_conv", 3)),
        ("sep_conv_5x5", ("sep_conv", 5)),
        ("dil_conv_3x3", ("dil_conv", 3)),
        ("dil_conv_5x5", ("dil_conv", 5)),
        ("conv_1x1", ("conv", 1)),
        ("conv_7x1_1x7", ("conv2", 7)),
        ("conv_3x3", ("conv", 3)),
        ("conv_5x5", ("conv", 5)),
        ("conv_7x7", ("conv", 7)),
        ("msa", ("msa", None)),
        ("cse", ("cse", None)),
    ],
)
def test_parse_operation(name: str, expected: tuple[str, int | None]) -> None:
    assert parse_operation(name) == expected


def test_vocabulary_is_the_published_one() -> None:
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15


def test_properties_of_named_genotypes() -> None:
    assert VIT.has_attention
    assert VIT.has_single_output_state
    assert not DARTS.has_attention
    assert not DARTS.has_single_output_state


@pytest.mark.parametrize(
    ("num_cells", "expected"), [(1, set()), (2, {1}), (3, {1, 2}), (4, {1, 2}), (12, {4, 8}), (14, {4, 9})]
)
def test_reduction_cells(num_cells: int, expected: set[int]) -> None:
    assert reduction_cells(num_cells) == expected


def data_flow(genotype: Genotype, num_cells: int) -> networkx.DiGraph:
    """The states of all cells as nodes (cell, state); a cell's output is (cell, "out"), the stem is cells -1 and -2."""
    graph = networkx.DiGraph([((-2, "out"), (-1, "out"))])
    for index in range(num_cells):
        connections, concat = genotype.cell(is_reduction=index in reduction_cells(num_cells))
        graph.add_edges_from(((index - 2 + state, "out"), (index, state)) for state in (0, 1))
        for position, (operation, state) in enumerate(connections):
            graph.add_node((index, 2 + position // 2))
            if operation != "none":
                graph.add_edge((index, state), (index, 2 + position // 2))
        graph.add_edges_from(((index, state), (index, "out")) for state in concat)
    return graph


def genotypes_with_many_gaps() -> list[tuple[Genotype, int]]:
    """Random genotypes of 2 to 4 steps in which most operations are `none`, with a number of cells each."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(300):
        record = sample_genotype(rng, int(rng.integers(2, 5))).to_dict()
        for cell in ("normal", "reduce"):
            record[cell] = [[op if rng.random() < 0.35 else "none", state] for op, state in record[cell]]
        cases.append((Genotype.from_dict(record), int(rng.integers(1, 8))))
    return cases


def test_is_connected_agrees_with_graph_search() -> None:
    outcomes = []
    for genotype, num_cells in genotypes_with_many_gaps():
        graph = data_flow(genotype, num_cells)
        outcomes.append(networkx.has_path(graph, (-2, "out"), (num_cells - 1, "out")))
        assert genotype.is_connected(num_cells) == outcomes[-1]
    assert 50 < sum(outcomes) < 250  # both answers occur often


def test_live_cells_agree_with_graph_search() -> None:
    for genotype, num_cells in genotypes_with_many_gaps():
        graph = data_flow(genotype, num_cells)
        graph.remove_edge((-2, "out"), (-1, "out"))
        last = (num_cells - 1, "out")
        needed = {index for index, state in networkx.ancestors(graph, last) | {last} if state == "out"}
        assert genotype.live_cells(num_cells, {num_cells - 1}) == needed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"normal": [["sep_conv_3x4", 0], ["msa", 1]]},
            r"Unknown operation 'sep_conv_3x4'.*did you mean 'sep_conv_3x3'",
        ),
        ({"normal": [["xyz", 0], ["msa", 1]]}, "known are none, max_pool_3x3"),
        ({"normal": [["msa", 0]]}, "two connections per step; found 1"),
        ({"reduce": []}, "'reduce' must list two connections per step; found 0"),
        ({"normal": [["msa", 0], ["msa", 2]]}, "position 1 of 'normal' belongs to step 0.*found state 2"),
        ({"reduce": [["cse", -1], ["cse", 0]]}, "found state -1"),
        ({"normal": [["msa"], ["msa", 1]]}, r"pair \[operation, state index\]; found \['msa'\]"),
        ({"normal": [["msa", "0"], ["msa", 1]]}, "pair"),
        ({"normal_concat": [1]}, "'normal_concat' must name distinct states from 2 to 2"),
        ({"normal_concat": [2, 2]}, "distinct"),
        ({"reduce_concat": []}, "at least one"),
        ({"extra": 1}, r"unknown \['extra'\]"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Genotype.from_dict(VIT.to_dict() | change)


def test_missing_field_is_named() -> None:
    record = VIT.to_dict()
    del record["reduce"]
    with pytest.raises(ArchitectureError, match=r"missing \['reduce'\]"):
        Genotype.from_dict(record)
    assert issubclass(ArchitectureError, ParamInitError)
    assert issubclass(ArchitectureError, ValueError)
