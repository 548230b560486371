import sys

import pytest

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.plots.asvit import draw_growth, draw_search

pytest.importorskip("matplotlib")

SEARCH = ([0.0, 1.0, -0.5], [0.0, 0.5, 0.1], [15.3, 15.2, 15.0], [2])
GROWTH = ([(1, 1, 1, 1), (1, 2, 1, 1)], [32, 40], [2.3e6, 3.6e6])


def test_a_search_shows_rewards_failures_and_entropy() -> None:
    left, right = draw_search(*SEARCH, best="topology").axes
    assert "topology" in left.get_title()
    points, crosses = left.collections
    assert points.get_offsets().data.tolist() == [[0, 0], [1, 1], [2, -0.5]]
    assert crosses.get_offsets().data.tolist() == [[2, -0.5]]
    assert list(left.get_lines()[0].get_ydata()) == SEARCH[1]
    assert list(right.get_lines()[0].get_ydata()) == SEARCH[2]


def test_a_series_shows_blocks_per_stage_and_size() -> None:
    left, right = draw_growth(*GROWTH, seed="topology").axes
    assert [bar.get_height() for bar in left.patches] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert [bar.get_y() for bar in left.patches] == [0, 0, 1, 1, 2, 3, 3, 4]
    assert [label.get_text() for label in left.get_xticklabels()] == ["32", "40"]
    assert list(right.get_lines()[0].get_ydata()) == [2.3, 3.6]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"hf_paraminit\[plots\]"):
        draw_search(*SEARCH, best="")
