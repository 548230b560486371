"""Learning curves of several initialisations, one panel per network, with bands over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_paraminit.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[int, float]

# Grey for the first, which is the default, then Okabe and Ito's colours, darkened where white would swallow them.
COLORS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#b3498a", "#8a6d00", "#2f8fce", "#882255")
MARKERS = ("o", "s", "^", "D", "x")
DASHES = (":", "-", "--")
PANEL_WIDTH, PANEL_HEIGHT, MAX_COLUMNS = 4.2, 3.4, 3  # inches; panels


def draw_learning_curves(
    means: Mapping[str, Mapping[str, Curve]], deviations: Mapping[str, Mapping[str, Curve]], *, title: str = ""
) -> Figure:
    """Draw accuracy over optimiser steps.

    Args:
        means: Mean accuracy in percent by network, initialisation and step.
        deviations: Standard deviation likewise, for the bands.
        title: Over the whole figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'Pictures need matplotlib, which is not installed: pip install "hf_paraminit[plots]".'
        ) from error
    columns = min(MAX_COLUMNS, len(means))
    rows = -(-len(means) // columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    inits = list(dict.fromkeys(init for curves in means.values() for init in curves))
    for panel, (net, curves) in zip(panels, means.items(), strict=False):
        _draw_panel(panel, net, curves, deviations[net], inits)
    for panel in panels[len(means) :]:
        panel.set_visible(False)
    handles = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    if title:
        figure.suptitle(title)
    return figure


def _draw_panel(
    panel: Axes, net: str, curves: Mapping[str, Curve], deviations: Mapping[str, Curve], inits: Sequence[str]
) -> None:
    for init, curve in curves.items():
        index = inits.index(init)
        color = COLORS[index % len(COLORS)]
        steps, values = list(curve), list(curve.values())
        spread = [deviations[init][step] for step in steps]
        panel.plot(
            steps,
            values,
            label=init,
            color=color,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linestyle=DASHES[0] if index == 0 else DASHES[1 + index // len(COLORS) % 2],
        )
        low = [max(0.0, value - width) for value, width in zip(values, spread, strict=True)]
        high = [min(100.0, value + width) for value, width in zip(values, spread, strict=True)]
        panel.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0)
    ticks = list(next(iter(curves.values())))
    panel.set_xscale("symlog", linthresh=10)
    panel.set_xticks(ticks, [str(step) for step in ticks])
    panel.minorticks_off()
    panel.set(title=net, xlabel="optimiser step", ylabel="accuracy, %", ylim=(0, 100))
    panel.grid(alpha=0.3)
