"""A picture of a computational graph: boxes in the order of the data flow, coloured by primitive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.plots.layered_layout import LayeredLayout, lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Legend: N nodes, M edges, S points along a curve. All lengths are inches, all font sizes points.

Floats = NDArray[np.float64]

MAX_LABELLED_NODES = 700  # beyond it a page with readable labels would be larger than a poster

# Fill and text colour. The light ones are Paul Tol's "light" scheme, made for labelled cells, the dark ones Okabe and
# Ito's and Tol's "muted"; both are told apart with any kind of colour vision. Kinds that do similar work have similar
# colours, and every labelled box also says its primitive in words.
COLORS: dict[str, tuple[str, str]] = {
    "input": ("#000000", "white"),
    "conv": ("#77AADD", "black"),
    "sep_conv": ("#99DDFF", "black"),
    "dil_conv": ("#0072B2", "white"),
    "bias": ("#DDDDDD", "black"),
    "bn": ("#EEDD88", "black"),
    "ln": ("#BBCC33", "black"),
    "msa": ("#882255", "white"),
    "cse": ("#CC79A7", "black"),
    "sum": ("#44BB99", "black"),
    "concat": ("#117733", "white"),
    "max_pool": ("#D55E00", "white"),
    "avg_pool": ("#EE8866", "black"),
    "glob_avg": ("#FFAABB", "black"),
    "pos_enc": ("#332288", "white"),
}
_OTHER_COLOR = ("#FFFFFF", "black")
_OUTLINE = "#333333"
_EDGE_COLOR = "#555555"

_MARGIN = 0.3
_HEADER = 0.4  # title
_LEGEND_LINE = 0.25
_LEGEND_ENTRY = 1.15
_LEAST_WIDTH = 6.0
_FONT_SIZE = 5.6
_CHARACTER = 0.6 * _FONT_SIZE / 72  # width of a digit or small letter of the default font, on average


@dataclass(frozen=True)
class _Scale:
    """Sizes of boxes and the distances between them."""

    box_width: float
    box_height: float
    column_pitch: float
    lane_pitch: float
    row_gap: float
    arrow: float


_LABELLED = _Scale(box_width=1.06, box_height=0.3, column_pitch=1.23, lane_pitch=0.44, row_gap=0.3, arrow=0.055)
_UNLABELLED = _Scale(box_width=0.2, box_height=0.14, column_pitch=0.3, lane_pitch=0.22, row_gap=0.2, arrow=0.035)


def draw_graph(
    primitives: Sequence[str],
    edges: ArrayLike,
    labels: Sequence[str],
    details: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw a directed graph in the order of its data flow.

    Rows run to the right and to the left in turn; arrows give the direction. Edges that skip nodes are arcs.

    Args:
        primitives: kind of each of the N nodes, at least one; decides its colour.
        edges: (M, 2) integer rows (source, target).
        labels: name of each node; its beginning is cut off where it does not fit the box.
        details: more about each node, such as a shape, printed after its primitive; may be empty.
        title: heading.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    edge_rows = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    is_labelled = len(primitives) <= MAX_LABELLED_NODES
    scale = _LABELLED if is_labelled else _UNLABELLED
    layout = lay_out(
        len(primitives),
        edge_rows,
        column_pitch=scale.column_pitch,
        lane_pitch=scale.lane_pitch,
        row_gap=scale.row_gap,
    )
    centres, height = _centres(layout, scale)
    counts = Counter(primitives)
    width = max(layout.num_columns * scale.column_pitch, _LEAST_WIDTH)
    axes = _page(width, height, counts, title)
    _draw_edges(axes, edge_rows, layout, centres, scale)
    _draw_boxes(axes, primitives, centres, scale)
    if is_labelled:
        _draw_labels(axes, primitives, labels, details, centres, scale)
    figure = axes.get_figure()
    assert figure is not None
    return figure  # type: ignore[return-value]


def _centres(layout: LayeredLayout, scale: _Scale) -> tuple[Floats, float]:
    """Return (N, 2) positions, y downwards, and the height of the drawing."""
    heights = layout.lanes_per_row * scale.lane_pitch + scale.row_gap
    tops = np.concatenate([[0.0], np.cumsum(heights)])
    x = (layout.columns + 0.5) * scale.column_pitch
    y = tops[layout.rows] + scale.row_gap + (layout.lanes + 0.5) * scale.lane_pitch
    return np.stack([x, y], 1), float(tops[-1])


def _page(width: float, height: float, counts: Counter[str], title: str) -> Axes:
    """A figure with heading and legend whose axes measure inches from the upper left corner of the drawing."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingDependencyError(
            'Drawing a graph needs matplotlib, which is not installed: pip install "hf_paraminit[plots]".'
        ) from error
    per_line = max(1, int(width / _LEGEND_ENTRY))
    header = _HEADER + _LEGEND_LINE * -(-len(counts) // per_line)
    full_width, full_height = width + 2 * _MARGIN, height + header + 2 * _MARGIN
    figure = Figure(figsize=(full_width, full_height), facecolor="white")
    figure.text(
        _MARGIN / full_width, 1 - _MARGIN / full_height, title, fontsize=13, fontweight="bold", ha="left", va="top"
    )
    figure.legend(
        handles=[
            Patch(facecolor=color_of(kind)[0], edgecolor=_OUTLINE, linewidth=0.6, label=f"{kind} {count}")
            for kind, count in counts.most_common()
        ],
        loc="upper left",
        bbox_to_anchor=(_MARGIN / full_width, 1 - (_MARGIN + _HEADER - 0.1) / full_height),
        ncols=per_line,
        fontsize=8,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        columnspacing=1.2,
    )
    axes = figure.add_axes((_MARGIN / full_width, _MARGIN / full_height, width / full_width, height / full_height))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def color_of(primitive: str) -> tuple[str, str]:
    """Fill and text colour of a primitive; white for kinds without a colour of their own."""
    return COLORS.get(primitive, _OTHER_COLOR)


def _draw_boxes(axes: Axes, primitives: Sequence[str], centres: Floats, scale: _Scale) -> None:
    from matplotlib.patches import FancyBboxPatch

    corners = centres - np.array([scale.box_width, scale.box_height]) / 2
    rounding = scale.box_height / 5
    for primitive, corner in zip(primitives, corners, strict=True):
        axes.add_patch(
            FancyBboxPatch(
                tuple(corner),
                scale.box_width,
                scale.box_height,
                boxstyle=f"round,pad=0,rounding_size={rounding}",
                facecolor=color_of(primitive)[0],
                edgecolor=_OUTLINE,
                linewidth=0.6,
                zorder=3,
            )
        )


def _draw_labels(
    axes: Axes,
    primitives: Sequence[str],
    labels: Sequence[str],
    details: Sequence[str],
    centres: Floats,
    scale: _Scale,
) -> None:
    num_characters = int(scale.box_width / _CHARACTER)
    for primitive, label, detail, (x, y) in zip(primitives, labels, details, centres, strict=True):
        lines = [label, f"{primitive} {detail}".strip()] if label != primitive else [f"{primitive} {detail}".strip()]
        text = "\n".join(shorten_front(line, num_characters) for line in lines)
        axes.text(
            x, y, text, color=color_of(primitive)[1], fontsize=_FONT_SIZE, ha="center", va="center_baseline", zorder=4
        )


def shorten_front(text: str, num_characters: int) -> str:
    """Cut off the beginning of a text that is too long, at a dot if there is one, and mark the cut."""
    if len(text) <= num_characters:
        return text
    tail = text[len(text) - num_characters + 1 :]
    return "…" + (tail.partition(".")[2] or tail)


def _draw_edges(axes: Axes, edges: NDArray[np.int64], layout: LayeredLayout, centres: Floats, scale: _Scale) -> None:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgb

    if not len(edges):
        return
    controls = np.array([_curve(source, target, layout, centres, scale) for source, target in edges])
    is_step = np.abs(layout.depths[edges[:, 1]] - layout.depths[edges[:, 0]]) == 1
    # where hundreds of edges skip nodes, as in DenseNets, they must not hide the main chain
    faint = float(np.clip(80 / max(1, (~is_step).sum()), 0.25, 0.7))
    colors = [(*to_rgb(_EDGE_COLOR), alpha) for alpha in np.where(is_step, 1.0, faint)]
    widths = np.where(is_step, 0.9, 0.7)
    # not clipped, since edges around the end of a row use the margin
    axes.add_collection(
        LineCollection(list(_bezier(controls)), colors=colors, linewidths=widths, zorder=1, clip_on=False)
    )
    axes.add_collection(
        PolyCollection(list(_arrowheads(controls, scale.arrow)), facecolors=colors, zorder=2, clip_on=False)
    )


def _curve(source: int, target: int, layout: LayeredLayout, centres: Floats, scale: _Scale) -> Floats:
    """(4, 2) control points of the Bezier curve from one box to another.

    Neighbours are joined side to side. In one lane of a row, longer edges are arcs above it; between lanes they follow
    the lower lane; between rows they swing down through the gap, or around the end of the row.
    """
    (x0, y0), (x1, y1) = centres[source], centres[target]
    half_width, half_height = scale.box_width / 2, scale.box_height / 2
    heading = np.sign(x1 - x0)
    if _turns_around_boxes(source, target, layout):
        outwards = 1 if layout.rows[source] % 2 == 0 else -1
        side = x0 + outwards * half_width
        reach = (layout.lanes[source] + 1) * (scale.column_pitch - scale.box_width)
        bulge = side + outwards * min(reach, 4 / 3 * _MARGIN)  # the curve reaches 3/4 of it
        return np.array([(side, y0), (bulge, y0), (bulge, y1), (side, y1)])
    if layout.rows[source] != layout.rows[target]:
        down = np.sign(y1 - y0)
        start, end = y0 + down * half_height, y1 - down * half_height
        bend = max(0.6 * abs(end - start), scale.row_gap / 2) * down
        return np.array([(x0, start), (x0, start + bend), (x1, end - bend), (x1, end)])
    if abs(layout.columns[source] - layout.columns[target]) == 1:
        start, end = x0 + heading * half_width, x1 - heading * half_width
        middle = (start + end) / 2
        return np.array([(start, y0), (middle, y0), (middle, y1), (end, y1)])
    if y0 == y1:
        span = abs(x1 - x0) / scale.column_pitch
        room = scale.row_gap if layout.lanes[source] == 0 else scale.lane_pitch - scale.box_height
        rise = 4 / 3 * room * span / (span + 3)  # a cubic arc reaches 3/4 of its control points' height
        left, right = x0 + heading * half_width / 2, x1 - heading * half_width / 2
        top = y0 - half_height
        return np.array([(left, top), (left, top - rise), (right, top - rise), (right, top)])
    if y0 > y1:  # back to a lane above: along the own lane, then up
        return np.array([(x0 + heading * half_width, y0), (x1, y0), (x1, y0), (x1, y1 + half_height)])
    return np.array([(x0, y0 + half_height), (x0, y1), (x0, y1), (x1 - heading * half_width, y1)])


def _turns_around_boxes(source: int, target: int, layout: LayeredLayout) -> bool:
    """Whether an edge joins the ends of two rows where a straight line would pass behind the boxes of other lanes."""
    if layout.columns[source] != layout.columns[target] or layout.rows[target] != layout.rows[source] + 1:
        return False
    below_source = (layout.depths == layout.depths[source]) & (layout.lanes > layout.lanes[source])
    is_turn = layout.depths[target] == layout.depths[source] + 1
    return bool(is_turn and (below_source.any() or layout.lanes[target] > 0))


def _bezier(controls: Floats, num_points: int = 24) -> Floats:
    """(M, S, 2) points along M cubic curves with (M, 4, 2) control points."""
    t = np.linspace(0, 1, num_points)
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    return np.einsum("sk,mkd->msd", weights, controls)


def _arrowheads(controls: Floats, length: float) -> Floats:
    """(M, 3, 2) triangles at the ends of the curves."""
    tip = controls[:, 3]
    direction = tip - _bezier(controls)[:, -3]
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9) * length
    sideways = direction[:, ::-1] * np.array([-0.45, 0.45])
    base = tip - direction
    return np.stack([tip, base + sideways, base - sideways], 1)
