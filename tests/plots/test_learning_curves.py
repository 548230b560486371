import pytest

from hf_paraminit.plots.learning_curves import COLORS, draw_learning_curves

CURVE = {0: 10.0, 10: 50.0, 150: 99.0}
SPREAD = {0: 1.0, 10: 20.0, 150: 5.0}


@pytest.mark.parametrize("num_nets", [1, 2, 4])
def test_a_panel_per_net_with_a_line_and_a_band_per_initialisation(num_nets: int) -> None:
    nets = [f"net{index}" for index in range(num_nets)]
    figure = draw_learning_curves(
        {net: {"default": CURVE, "he": CURVE} for net in nets}, {net: {"default": SPREAD, "he": SPREAD} for net in nets}
    )
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == nets
    for panel in panels:
        assert [line.get_label() for line in panel.get_lines()] == ["default", "he"]
        assert panel.get_lines()[0].get_xydata().tolist() == [list(point) for point in CURVE.items()]
        band = panel.collections[0].get_paths()[0].vertices
        assert (band[:, 1].min(), band[:, 1].max()) == (9.0, 100.0)  # 99 + 5 is cut at 100 percent


def test_an_initialisation_has_the_same_look_in_every_panel() -> None:
    figure = draw_learning_curves(
        {"a": {"x": CURVE, "y": CURVE}, "b": {"y": CURVE}}, {"a": {"x": SPREAD, "y": SPREAD}, "b": {"y": SPREAD}}
    )
    first, second = (panel.get_lines()[-1] for panel in figure.axes)
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker())


def test_more_lines_than_colours_are_told_apart_by_their_marks() -> None:
    curves = {f"init{index}": CURVE for index in range(len(COLORS) + 3)}
    figure = draw_learning_curves({"a": curves}, {"a": dict.fromkeys(curves, SPREAD)})
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == len(curves)
