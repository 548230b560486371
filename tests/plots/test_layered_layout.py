import numpy as np
import pytest

from hf_paraminit.plots.layered_layout import LayeredLayout, lay_out

PITCHES = {"column_pitch": 1.2, "lane_pitch": 0.4, "row_gap": 0.3}


def edges_of_chain(num_nodes: int) -> list[tuple[int, int]]:
    return [(node, node + 1) for node in range(num_nodes - 1)]


def layout_of(num_nodes: int, edges: list[tuple[int, int]]) -> LayeredLayout:
    return lay_out(num_nodes, np.array(edges, np.int64).reshape(-1, 2), **PITCHES)


@pytest.mark.parametrize("seed", range(5))
def test_laws_on_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(2, 120))
    parents = [(int(rng.integers(max(0, node - 4), node)), node) for node in range(1, num_nodes)]
    skips = [tuple(sorted(rng.choice(num_nodes, 2, replace=False).tolist())) for _ in range(num_nodes // 3)]
    edges = sorted({*parents, *skips})
    layout = layout_of(num_nodes, edges)
    assert all(layout.depths[source] < layout.depths[target] for source, target in edges)
    assert len(set(zip(layout.depths, layout.lanes, strict=True))) == num_nodes
    assert len(set(zip(layout.rows, layout.columns, layout.lanes, strict=True))) == num_nodes
    assert (layout.columns >= 0).all()
    assert (layout.columns < layout.num_columns).all()
    assert all(layout.lanes_per_row[row] > layout.lanes[layout.rows == row].max() for row in set(layout.rows))


def test_the_depth_is_the_longest_path() -> None:
    layout = layout_of(5, [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4)])
    assert layout.depths.tolist() == [0, 1, 2, 3, 4]
    assert layout.lanes.tolist() == [0] * 5


def test_the_longer_branch_continues_straight() -> None:
    # 0 -> 1 -> 2 -> 5 and 0 -> 3 -> 5, with the short branch listed first
    layout = layout_of(5, [(0, 1), (0, 2), (2, 3), (1, 4), (3, 4)])
    assert layout.lanes.tolist() == [0, 1, 0, 0, 0]


def test_rows_run_like_a_snake() -> None:
    layout = layout_of(100, edges_of_chain(100))
    steps = np.abs(np.diff(layout.columns)) + np.abs(np.diff(layout.rows))
    assert (steps == 1).all()
    assert layout.rows.max() > 2


@pytest.mark.parametrize("num_nodes", [30, 100, 300, 500])
def test_the_page_has_the_proportions_of_a_screen(num_nodes: int) -> None:
    layout = layout_of(num_nodes, edges_of_chain(num_nodes))
    width = layout.num_columns * PITCHES["column_pitch"]
    height = (layout.lanes_per_row * PITCHES["lane_pitch"] + PITCHES["row_gap"]).sum()
    assert 1.1 < width / height < 2.2


def test_edges_to_earlier_nodes_do_not_count() -> None:
    assert layout_of(3, [(0, 1), (1, 2), (2, 1), (1, 1)]).depths.tolist() == [0, 1, 2]


def test_a_source_that_feeds_a_late_node_stands_before_it() -> None:
    layout = layout_of(6, [*edges_of_chain(5)[:3], (3, 5), (4, 5)])
    assert layout.depths.tolist() == [0, 1, 2, 3, 3, 4]


def test_a_single_node() -> None:
    layout = layout_of(1, [])
    assert (layout.num_columns, layout.rows.tolist(), layout.columns.tolist()) == (1, [0], [0])
