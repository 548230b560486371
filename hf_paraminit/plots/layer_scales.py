"""A picture of how a network starts: the gain of each kernel, and the scale of each layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hf_paraminit.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 9.0, 6.0  # inches
MAX_TICKS = 24  # more names than this would overlap
LECUN_GAIN, HE_GAIN = 1.0, 2**0.5
# Okabe and Ito: told apart with any kind of colour vision.
_COLOR, _FAULT_COLOR, _GUIDE_COLOR = "#0072B2", "#D55E00", "#666666"


def draw_layer_scales(
    *,
    tensor_names: Sequence[str],
    gains: Sequence[float],
    is_faulty: Sequence[bool],
    layer_names: Sequence[str],
    activation_stds: Sequence[float],
    is_faulty_layer: Sequence[bool],
    title: str,
) -> Figure:
    """Draw two rows of points on logarithmic axes: gains by kernel, and activation scales by depth.

    Zero and NaN have no place on such an axis: these points stand at its lower edge, hollow.

    Args:
        tensor_names: Of the kernels, in the model's order.
        gains: std * sqrt(fan_in) of each.
        is_faulty: Whether a fault was found in it.
        layer_names: Of the layers, in the order of execution; empty when nothing was run.
        activation_stds: Standard deviation of each one's output.
        is_faulty_layer: Whether a fault was found there.
        title: Heading.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'Drawing layer scales needs matplotlib, which is not installed: pip install "hf_paraminit[plots]".'
        ) from error
    num_panels = 2 if layer_names else 1
    figure = Figure(figsize=(WIDTH, HEIGHT * num_panels / 2), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(num_panels, squeeze=False)[:, 0]
    _draw_points(panels[0], tensor_names, gains, is_faulty)
    panels[0].set_ylabel("gain of the weights\nstd * sqrt(fan-in)")
    for gain, name in ((LECUN_GAIN, "LeCun"), (HE_GAIN, "He")):
        panels[0].axhline(gain, color=_GUIDE_COLOR, linewidth=0.8, linestyle="--")
        panels[0].annotate(name, (1.0, gain), xycoords=("axes fraction", "data"), fontsize=7, color=_GUIDE_COLOR)
    if layer_names:
        _draw_points(panels[1], layer_names, activation_stds, is_faulty_layer)
        panels[1].set_ylabel("std of the output")
    return figure


def _draw_points(axes: Axes, names: Sequence[str], values: Sequence[float], is_faulty: Sequence[bool]) -> None:
    heights = np.asarray(values, dtype=np.float64)
    faulty = np.asarray(is_faulty, dtype=bool)
    places = np.arange(len(heights))
    has_place = np.isfinite(heights) & (heights > 0)
    floor = heights[has_place].min() / 3 if has_place.any() else 1.0
    axes.set_yscale("log")
    for members, color, label in ((~faulty, _COLOR, None), (faulty, _FAULT_COLOR, "fault")):
        shown, hollow = members & has_place, members & ~has_place
        axes.scatter(places[shown], heights[shown], s=12, color=color, label=label if faulty.any() else None)
        axes.scatter(places[hollow], np.full(hollow.sum(), floor), s=12, facecolors="none", edgecolors=color)
    if faulty.any():
        axes.legend(fontsize=7)
    _label_some(axes, names, places)


def _label_some(axes: Axes, names: Sequence[str], places: NDArray[np.int64]) -> None:
    step = max(1, -(-len(names) // MAX_TICKS))
    axes.set_xticks(places[::step], list(names)[::step], rotation=90, fontsize=6)
