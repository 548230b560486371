import math
import sys

import pytest

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.plots.figure import new_figure
from hf_paraminit.plots.grouped_bars import draw_grouped_bars
from hf_paraminit.plots.lines import draw_lines
from hf_paraminit.plots.size_scatter import draw_size_scatter

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg


def test_a_point_per_network_in_the_colour_of_its_group() -> None:
    groups = {"test": [(1e6, 20.0), (2e6, 30.0)], "deep": [(3e6, 10.0)]}
    figure = draw_size_scatter(groups, measure="top-1, %", title="ghn3")
    (axes,) = figure.axes
    assert [points.get_offsets().tolist() for points in axes.collections] == [
        [list(point) for point in found] for found in groups.values()
    ]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["test (2)", "deep (1)"]


def test_bars_stand_side_by_side_and_missing_ones_leave_a_gap() -> None:
    series = {"a": {"x": (1.0, 0.1), "y": (2.0, 0.0)}, "b": {"y": (3.0, 0.0), "x": (math.nan, 0.0)}}
    figure = draw_grouped_bars(series, measure="%", title="bars")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [1.0, 2.0, 3.0]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert centres == pytest.approx([-0.2, 0.8, 1.2])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y"]


def test_lines_run_in_the_order_of_their_places() -> None:
    figure = draw_lines(
        {"ghn3": {2.0: (60.0, 1.0), 0.0: (10.0, 1.0), 1.0: (math.nan, 0.0)}},
        horizontal="epoch",
        measure="%",
        title="curve",
        names={0.0: "start", 2.0: "end"},
    )
    (axes,) = figure.axes
    (line,) = (line for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_linestyle() == "-")
    assert line.get_xydata().tolist() == [[0.0, 10.0], [2.0, 60.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["start", "end"]


def test_nothing_to_draw_is_an_empty_picture() -> None:
    for figure in (
        draw_size_scatter({}, measure="%", title=""),
        draw_grouped_bars({}, measure="%", title=""),
        draw_lines({}, horizontal="epoch", measure="%", title="", log=True),
    ):
        FigureCanvasAgg(figure).draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="plots"):
        new_figure(3, 3, title="")
