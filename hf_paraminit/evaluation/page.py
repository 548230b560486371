"""One HTML page about a comparison, complete in itself: no request, no script; light and dark; narrow and wide."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hf_paraminit.evaluation.summary import Row, Summary
from hf_paraminit.io.atomic import atomic_write

Record = Mapping[str, Any]
Point = tuple[float, float]

TEMPLATE = "page.html.jinja"
# All lengths are SVG units; a plot is about as many CSS pixels wide.
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 10, 34
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
COLORS = 8
NONE = "\N{EN DASH}"
SHOWN_ZERO_SHOT = {
    "plain": "accuracy",
    "recalibrated": "accuracy, statistics re-estimated",
    "nearest_mean": "features, nearest mean",
    "linear": "features, linear probe",
}
SHOWN_FLOW = {
    "loss": "loss",
    "loss_decrease": "loss decrease of one step",
    "activation_ratio": "activation std, max/min",
    "activation_slope": "its log-slope",
    "gradient_ratio": "gradient rms, max/min",
    "gradient_slope": "its log-slope",
    "dead_layers": "dead layers",
    "exploding_layers": "exploding layers",
    "inactive_share": "inactive rectified channels",
    "half_batch_cosine": "cosine of half-batch gradients",
    "effective_rank": "effective rank of features",
}
SHOWN_DISTRIBUTION = {
    "std_over_he": "std over He",
    "kurtosis": "kurtosis",
    "spectral_norm": "spectral norm",
    "duplicate_share": "duplicate filters",
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot: what it is called, how it looks, and its points in SVG units."""

    label: str
    style: int
    marker: str
    points: Sequence[Point]
    band: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over ticks; ticks are (position, text)."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def write_page(facts: Record, summary: Summary, path: Path) -> None:
    """Write the page.

    Args:
        facts: `Comparison.to_dict()`.
        summary: What was found.
        path: File to create or replace.

    Raises:
        OutputError: It could not be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(render_page(facts, summary), encoding="utf-8")


def render_page(facts: Record, summary: Summary) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["points"] = _svg_points
    environment.filters["number"] = number
    environment.filters["signed"] = _signed
    source = importlib.resources.files("hf_paraminit.evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8")
    styles = {init: (index % COLORS, MARKERS[index % len(MARKERS)]) for index, init in enumerate(summary.inits)}
    nets = [_net_section(net, facts, summary, styles) for net in summary.nets]
    return environment.from_string(source).render(
        facts=facts,
        settings=facts["settings"],
        summary=summary,
        styles=styles,
        nets=nets,
        forest=_forest(summary, styles),
        width=WIDTH,
        height=HEIGHT,
        frame=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        shown={"zero_shot": SHOWN_ZERO_SHOT, "flow": SHOWN_FLOW, "distribution": SHOWN_DISTRIBUTION},
    )


def _net_section(net: str, facts: Record, summary: Summary, styles: Mapping[str, tuple[int, str]]) -> Record:
    rows = [row for row in summary.rows if row.net == net]
    started = [row for row in rows if row.start]
    return {
        "title": facts["settings"]["models"][net]["title"],
        "rows": rows,
        "started": started,
        "steps": list(rows[0].curve) if rows else [],
        "plots": [
            *([_curve_plot(rows, styles)] if rows else []),
            *(
                _layer_plot(started, styles, key, title)
                for key, title in (
                    ("activation_std", "Activation std by layer, before training"),
                    ("gradient_rms", "Gradient rms by layer, before training"),
                )
                if started
            ),
        ],
    }


def _curve_plot(rows: Sequence[Row], styles: Mapping[str, tuple[int, str]]) -> Plot:
    """Mean accuracy over steps with a band of one standard deviation; steps on a log(1 + step) axis."""
    last = max(max(row.curve) for row in rows)

    def place(step: float, accuracy: float) -> Point:
        return _scaled(math.log1p(step) / math.log1p(last), accuracy / 100)

    series = []
    for row in rows:
        upper = [place(step, min(100, row.curve[step] + row.deviation[step])) for step in row.curve]
        lower = [place(step, max(0, row.curve[step] - row.deviation[step])) for step in reversed([*row.curve])]
        style, marker = styles[row.init]
        points = [place(step, value) for step, value in row.curve.items()]
        series.append(Series(row.init, style, marker, points, [*upper, *lower]))
    return Plot(
        title="Accuracy over steps, with one standard deviation over seeds",
        x_label="optimiser step",
        y_label="accuracy, %",
        series=series,
        x_ticks=[(place(step, 0)[0], str(step)) for step in rows[0].curve],
        y_ticks=[(place(0, value)[1], str(value)) for value in (0, 25, 50, 75, 100)],
    )


def _layer_plot(rows: Sequence[Row], styles: Mapping[str, tuple[int, str]], key: str, title: str) -> Plot:
    values = {row.init: [layer[key] for layer in row.start["layers"]] for row in rows}
    logs = [math.log10(value) for line in values.values() for value in line if value]
    low, high = math.floor(min(logs, default=-1)), math.ceil(max(logs, default=0))
    high = max(high, low + 1)
    deepest = max(len(line) for line in values.values()) - 1

    def place(index: int, value: float) -> Point:
        return _scaled(index / max(1, deepest), (math.log10(value) - low) / (high - low))

    series = [
        Series(init, styles[init][0], "", [place(index, value) for index, value in enumerate(line) if value])
        for init, line in values.items()
    ]
    jump = max(1, -(-(high - low) // 5))
    return Plot(
        title=title,
        x_label="layer, in the order of execution",
        y_label="log scale",
        series=series,
        x_ticks=[(place(index, 10**low)[0], str(index + 1)) for index in sorted({0, deepest // 2, deepest})],
        y_ticks=[(place(0, 10.0**power)[1], f"1e{power}") for power in range(low, high + 1, jump)],
    )


def _forest(summary: Summary, styles: Mapping[str, tuple[int, str]]) -> Record | None:
    """Differences to the default with intervals: one line per initialisation, architectures as small marks."""
    lines = [(init, overall) for init, overall in summary.overall.items() if overall.estimate.low is not None]
    if not lines:
        return None
    marks = {
        init: [row.difference.mean for row in summary.rows if row.init == init and row.difference] for init, _ in lines
    }
    ends = [0.0, *(value for values in marks.values() for value in values)]
    for _, overall in lines:
        ends += [overall.estimate.low or 0.0, overall.estimate.high or 0.0]
    ticks = _round_ticks(min(ends), max(ends))
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    return {
        "height": 34 * len(lines) + BOTTOM,
        "zero": place(0.0),
        "ticks": [(place(tick), f"{tick:+.3g}" if tick else "0") for tick in ticks],
        "lines": [
            {
                "init": init,
                "style": styles[init][0],
                "y": 34 * index + 24,
                "mean": place(overall.estimate.mean),
                "low": place(overall.estimate.low or 0.0),
                "high": place(overall.estimate.high or 0.0),
                "marks": [place(value) for value in marks[init]],
            }
            for index, (init, overall) in enumerate(lines)
        ],
    }


def _round_ticks(low: float, high: float) -> list[float]:
    """A few multiples of 1, 2 or 5 times a power of ten that enclose the range."""
    size = max(high - low, 0.5)
    power = 10.0 ** math.floor(math.log10(size))
    unit = next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if size / (factor * power) <= 6)
    first, last = math.floor(low / unit), max(math.ceil(high / unit), math.floor(low / unit) + 1)
    return [index * unit for index in range(first, last + 1)]


def _scaled(x: float, y: float) -> Point:
    return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM), 1)


def _svg_points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def number(value: float | None, digits: int = 1) -> str:
    """Text of a number for a table; a dash for none, few digits for sizes far from one."""
    if value is None:
        return NONE
    if value != 0 and (abs(value) >= 1e4 or abs(value) < 10**-digits / 2):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:+.{digits}f}"
