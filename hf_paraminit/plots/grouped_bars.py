"""Bars side by side: accuracies by network, Kendall's tau by property, diversity, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_paraminit.plots.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bar = tuple[float, float]

ROOM = 0.8  # share of a place that its bars fill
MIN_WIDTH, INCHES_PER_BAR, INCHES_PER_PLACE = 5.0, 0.09, 0.28


def draw_grouped_bars(
    series: Mapping[str, Mapping[str, Bar]], *, measure: str, title: str, log: bool = False
) -> Figure:
    """Draw one bar per series at each place.

    Args:
        series: (value, half the length of its error bar; 0 for none) by series and place. A series may lack places.
        measure: What the values are, with the unit.
        title: Heading.
        log: Whether the axis of the values is logarithmic.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    places = list(dict.fromkeys(place for bars in series.values() for place in bars))
    num_bars = max(1, len(series)) * len(places)
    width = max(MIN_WIDTH, 1.5 + INCHES_PER_BAR * num_bars + INCHES_PER_PLACE * len(places))
    figure, axes = new_figure(width, 4.2, title=title)
    thickness = ROOM / max(1, len(series))
    for index, (name, bars) in enumerate(series.items()):
        shown = {place: bar for place, bar in bars.items() if math.isfinite(bar[0])}
        offset = (index - (len(series) - 1) / 2) * thickness
        errors = [error if math.isfinite(error) else 0.0 for _, error in shown.values()]
        axes.bar(
            [places.index(place) + offset for place in shown],
            [value for value, _ in shown.values()],
            thickness,
            yerr=errors if any(errors) else None,
            error_kw={"linewidth": 0.8, "capsize": 1.5},
            color=COLORS[index % len(COLORS)],
            label=name,
        )
    if series and not log:
        axes.margins(y=0.15)  # room for the legend, whose best place takes long to find among many bars
    is_crowded = len(places) > 8 or any(len(place) > 12 for place in places)
    axes.set_xticks(range(len(places)), places, rotation=90 if is_crowded else 0, fontsize=7 if is_crowded else 9)
    axes.set_ylabel(measure)
    if log:
        axes.set_yscale("log")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if series:
        axes.legend(fontsize=8, framealpha=0.9, loc="upper right")
    return figure
