import math
import sys

import pytest

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.plots.layer_scales import MAX_TICKS, draw_layer_scales

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(**changes: object) -> Figure:
    arguments = {
        "tensor_names": ["conv.weight", "fc.weight", "head.weight"],
        "gains": [1.4, 0.6, 50.0],
        "is_faulty": [False, False, True],
        "layer_names": ["conv", "fc"],
        "activation_stds": [0.5, 2.0],
        "is_faulty_layer": [False, False],
        "title": "a net",
    }
    return draw_layer_scales(**{**arguments, **changes})  # type: ignore[arg-type]


def points_of(figure: Figure, panel: int) -> list[tuple[float, float]]:
    return sorted((x, y) for group in figure.axes[panel].collections for x, y in group.get_offsets().tolist())


def test_every_value_is_a_point_on_a_logarithmic_axis() -> None:
    figure = draw()
    assert points_of(figure, 0) == [(0, 1.4), (1, 0.6), (2, 50.0)]
    assert points_of(figure, 1) == [(0, 0.5), (1, 2.0)]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "conv.weight",
        "fc.weight",
        "head.weight",
    ]
    assert figure.get_suptitle() == "a net"


def test_faults_have_a_colour_of_their_own() -> None:
    figure = draw()
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend() is not None]
    assert [text.get_text() for text in legend.get_texts()] == ["fault"]
    colors = {tuple(group.get_facecolor()[0]) for group in figure.axes[0].collections if len(group.get_offsets())}
    assert len(colors) == 2


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_what_no_logarithm_is_of_stands_hollow_below(value: float) -> None:
    figure = draw(gains=[1.4, value, 50.0])
    assert points_of(figure, 0)[1][1] < 1.4
    hollow = [
        group for group in figure.axes[0].collections if len(group.get_offsets()) and not len(group.get_facecolor())
    ]
    assert [group.get_offsets().tolist()[0][0] for group in hollow] == [1]
    FigureCanvasAgg(figure).draw()


def test_without_a_run_there_is_one_panel() -> None:
    assert len(draw(layer_names=[], activation_stds=[], is_faulty_layer=[]).axes) == 1


def test_of_many_names_some_are_shown() -> None:
    names = [f"layer{number}.weight" for number in range(1000)]
    figure = draw(tensor_names=names, gains=[1.0] * 1000, is_faulty=[False] * 1000)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(shown) <= MAX_TICKS
    assert shown[0] == names[0]


def test_nothing_to_draw_is_an_empty_picture() -> None:
    FigureCanvasAgg(draw(tensor_names=[], gains=[], is_faulty=[])).draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="plots"):
        draw()
