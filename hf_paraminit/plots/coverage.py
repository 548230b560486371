"""What keeps its own start, over all measured architectures: one point per model, and how often each reason occurs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hf_paraminit.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any kind of colour vision; shapes of the markers say the same again.
_STYLES = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"))
_FLOOR = 1e-4  # per cent; models that keep less stand on this line
_FULL, _LOW = 0.5, 10.0  # per cent kept: the aims for the median and for every model
_MAX_LABELS = 9
_REASON_WIDTH = 95  # characters
_BAR_ROOM = 2.6  # width of the lower axes in longest bars; the rest is for the reasons
_LABEL_GAP = 0.055  # of the height of the axes


def draw_coverage(
    models: Sequence[str],
    sources: Sequence[str],
    elements: ArrayLike,
    kept_elements: ArrayLike,
    reasons: Sequence[tuple[str, int]],
    *,
    title: str,
) -> Figure:
    """Draw the kept share of each model over its size, and the reasons.

    Args:
        models: N names, at least one; the outstanding ones are written beside their points.
        sources: Where each comes from; decides its colour.
        elements: (N,) number of parameters.
        kept_elements: (N,) those that keep the model's own start.
        reasons: Why tensors are kept, and in how many models, in the order of the bars.
        title: Heading.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), layout="constrained")
    figure.suptitle(title, fontsize=13)
    points, bars = figure.subplots(2, 1, height_ratios=(3, 1))
    sizes = np.asarray(elements, dtype=np.float64)
    shares = 100 * np.asarray(kept_elements, dtype=np.float64) / np.maximum(sizes, 1)
    _draw_models(points, models, sources, sizes, shares)
    _draw_reasons(bars, reasons)
    return figure


def require_matplotlib() -> None:
    """Raise `MissingDependencyError` where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'Drawing coverage needs matplotlib, which is not installed: pip install "hf_paraminit[plots]".'
        ) from error


def _draw_models(
    axes: Axes, models: Sequence[str], sources: Sequence[str], sizes: np.ndarray, shares: np.ndarray
) -> None:
    heights = np.maximum(shares, _FLOOR)
    for (color, marker), source in zip(_STYLES, sorted(set(sources)), strict=False):
        chosen = np.array([found == source for found in sources])
        label = f"{source}: {chosen.sum():,} models, median {100 - np.median(shares[chosen]):.2f} % predicted"
        axes.scatter(
            sizes[chosen], heights[chosen], s=16, c=color, marker=marker, alpha=0.45, linewidths=0, label=label
        )
    axes.set(xscale="log", yscale="log", ylim=(_FLOOR / 1.6, 100))
    axes.set_xlabel("parameters of the model")
    axes.set_ylabel("share that keeps the model's own start")
    ticks = (_FLOOR, 1e-3, 1e-2, 1e-1, _FULL, 1, _LOW, 100)
    axes.set_yticks(ticks, [f"≤ {_FLOOR:g} %", *(f"{tick:g} %" for tick in ticks[1:])])
    axes.minorticks_off()
    for share, text in ((_FULL, "aim for the median"), (_LOW, "aim for every model")):
        axes.axhline(share, color="#444444", linewidth=0.9, linestyle="--", zorder=0)
        axes.annotate(
            text, (0.995, share), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
            ha="right", va="bottom", fontsize=8, color="#444444",
        )  # fmt: skip
    _label_outstanding(axes, models, sizes, heights)
    axes.grid(visible=True, axis="both", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9)


def _label_outstanding(axes: Axes, models: Sequence[str], sizes: np.ndarray, heights: np.ndarray) -> None:
    """Name the models that keep most, as long as no two names would lie on each other."""
    low, high = np.log10(axes.get_ylim())
    places: list[float] = []
    for index in np.argsort(-heights):
        place = (np.log10(heights[index]) - low) / (high - low)
        if len(places) == _MAX_LABELS or heights[index] < _FULL:
            break
        if any(abs(place - other) < _LABEL_GAP for other in places):
            continue
        places.append(place)
        is_right = sizes[index] > np.sqrt(sizes.min() * sizes.max())
        axes.annotate(
            models[index], (sizes[index], heights[index]), xytext=(-6 if is_right else 6, 0),
            textcoords="offset points", ha="right" if is_right else "left", va="center", fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip


def _draw_reasons(axes: Axes, reasons: Sequence[tuple[str, int]]) -> None:
    shown = list(reversed(reasons))
    counts = [count for _, count in shown]
    bars = axes.barh(range(len(shown)), counts, color="#999999", height=0.7)
    axes.bar_label(bars, [f"{count:,}  {_shortened(reason)}" for reason, count in shown], padding=4, fontsize=8.5)
    axes.set_xlim(0, _BAR_ROOM * max(counts, default=1))
    axes.set_xlabel("models in which a tensor is kept, and why")
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= _REASON_WIDTH else f"{reason[: _REASON_WIDTH - 3].rstrip()}..."
