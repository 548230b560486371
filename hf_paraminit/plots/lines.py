"""Lines over a number: accuracy by epoch from several starts, or by the size of a predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_paraminit.plots.figure import COLORS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]


def draw_lines(
    series: Mapping[str, Mapping[float, Point]],
    *,
    horizontal: str,
    measure: str,
    title: str,
    log: bool = False,
    names: Mapping[float, str] | None = None,
) -> Figure:
    """Draw one line per series.

    Args:
        series: (value, half the length of its error bar; 0 for none) by series and place on the horizontal axis.
        horizontal: What the places are.
        measure: What the values are, with the unit.
        title: Heading.
        log: Whether the horizontal axis is logarithmic.
        names: Names of places, written beside the ticks.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, axes = new_figure(6.0, 4.2, title=title)
    for index, (name, points) in enumerate(series.items()):
        shown = sorted((place, point) for place, point in points.items() if math.isfinite(point[0]))
        axes.errorbar(
            [place for place, _ in shown],
            [value for _, (value, _) in shown],
            yerr=[error if math.isfinite(error) else 0.0 for _, (_, error) in shown],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    if log:
        axes.set_xscale("log")
    if names:
        axes.set_xticks(list(names), list(names.values()), fontsize=8)
        axes.minorticks_off()
    axes.set(xlabel=horizontal, ylabel=measure)
    axes.grid(alpha=0.3)
    if series:
        axes.legend(fontsize=8, framealpha=0.9, loc="lower right")
    return figure
