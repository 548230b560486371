"""Accuracy of networks over their number of parameters, one colour per group (GHN-2, arXiv 2110.13100, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_paraminit.plots.figure import COLORS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]


def draw_size_scatter(groups: Mapping[str, Sequence[Point]], *, measure: str, title: str) -> Figure:
    """Draw one point per network.

    Args:
        groups: (number of parameters, value) of each network, by group.
        measure: What the values are, with the unit.
        title: Heading.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, axes = new_figure(6.4, 4.4, title=title)
    for index, (group, points) in enumerate(groups.items()):
        axes.scatter(
            [size for size, _ in points],
            [value for _, value in points],
            s=18,
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            alpha=0.6,
            linewidths=0.5,
            label=f"{group} ({len(points)})",
        )
    axes.set(xscale="log", xlabel="parameters of the network", ylabel=measure)
    axes.grid(alpha=0.3)
    if groups:
        axes.legend(fontsize=8, framealpha=0.9, loc="upper left")
    return figure
