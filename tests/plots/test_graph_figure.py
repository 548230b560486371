import itertools
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.graphs.primitives import PRIMITIVES
from hf_paraminit.plots.graph import COLORS, MAX_LABELLED_NODES, color_of, draw_graph, shorten_front

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PRIMITIVES_OF_BLOCK = ["input", "conv", "bn", "conv", "sum", "glob_avg", "bias"]
EDGES_OF_BLOCK = [(0, 1), (1, 2), (2, 3), (3, 4), (1, 4), (4, 5), (5, 6)]


def draw_block(**changes: object) -> Figure:
    arguments = {
        "primitives": PRIMITIVES_OF_BLOCK,
        "edges": EDGES_OF_BLOCK,
        "labels": ["input", "stem.conv", "stem.bn", "layer1.0.conv2", "sum", "glob_avg", "fc"],
        "details": ["", "64x3x7x7", "64", "64x64x3x3", "", "", "10"],
        "title": "a block",
    }
    return draw_graph(**{**arguments, **changes})  # type: ignore[arg-type]


def boxes_of(figure: Figure) -> list[FancyBboxPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]


def test_one_box_per_node_one_line_per_edge_one_entry_per_kind() -> None:
    figure = draw_block()
    assert [to_hex(box.get_facecolor()).upper() for box in boxes_of(figure)] == [
        color_of(primitive)[0] for primitive in PRIMITIVES_OF_BLOCK
    ]
    (lines,) = (item for item in figure.axes[0].collections if isinstance(item, LineCollection))
    assert len(lines.get_segments()) == len(EDGES_OF_BLOCK)
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(entries) == ["bias 1", "bn 1", "conv 2", "glob_avg 1", "input 1", "sum 1"]
    assert figure.texts[0].get_text() == "a block"


def test_labels_say_name_primitive_and_shape() -> None:
    texts = [text.get_text() for text in draw_block().axes[0].texts]
    assert texts[1] == "stem.conv\nconv 64x3x7x7"
    assert texts[4] == "sum"


def test_labels_stay_inside_their_boxes() -> None:
    names = ["blocks.11.mlp.fc1", "features.denseblock3.denselayer24.norm1", "layer4.0.downsample.2", "w" * 40]
    details = ["2304x2048x1x1", "512x1024x11x11", "96x192x1x1", "1x1x3x3"]
    figure = draw_graph(
        ["conv", "dil_conv", "sep_conv", "max_pool"], [(0, 1), (1, 2), (2, 3)], names, details, title=""
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for box, text in zip(boxes_of(figure), figure.axes[0].texts, strict=True):
        if "w" not in text.get_text():  # no font's widest letter is made room for
            outer, inner = box.get_window_extent(), text.get_window_extent(canvas.get_renderer())
            assert inner.x0 >= outer.x0 - 1, text.get_text()
            assert inner.x1 <= outer.x1 + 1, text.get_text()
            assert inner.y0 >= outer.y0 - 1, text.get_text()
            assert inner.y1 <= outer.y1 + 1, text.get_text()


def test_lines_start_and_end_at_the_boxes_of_their_nodes() -> None:
    figure = draw_block()
    boxes = [box.get_bbox() for box in boxes_of(figure)]
    (lines,) = (item for item in figure.axes[0].collections if isinstance(item, LineCollection))
    for (source, target), points in zip(EDGES_OF_BLOCK, lines.get_segments(), strict=True):
        for node, point in ((source, points[0]), (target, points[-1])):
            box = boxes[node]
            assert box.x0 - 1e-6 <= point[0] <= box.x1 + 1e-6
            assert box.y0 - 1e-6 <= point[1] <= box.y1 + 1e-6


def test_edges_of_parallel_branches_do_not_run_into_boxes_of_the_other() -> None:
    length = 40
    branches = [[0, *range(start, start + length), 2 * length + 1] for start in (1, length + 1)]
    edges = sorted(step for branch in branches for step in itertools.pairwise(branch))
    names = ["conv"] * (2 * length + 2)
    figure = draw_graph(names, edges, names, names, title="two branches")
    boxes = [box.get_bbox() for box in boxes_of(figure)]
    assert len({round(box.y0, 3) for box in boxes}) > 4  # several rows, so there are turns
    (lines,) = (item for item in figure.axes[0].collections if isinstance(item, LineCollection))
    for (source, target), points in zip(edges, lines.get_segments(), strict=True):
        for node, box in enumerate(boxes):
            if node not in (source, target):
                inside = (points > [box.x0, box.y0]) & (points < [box.x1, box.y1])
                assert not inside.all(1).any(), f"{source} -> {target} crosses {node}"


def test_everything_is_on_the_page() -> None:
    rng = np.random.default_rng(0)
    edges = [(int(rng.integers(max(0, node - 3), node)), node) for node in range(1, 200)]
    primitives = [PRIMITIVES[int(kind)] for kind in rng.integers(0, len(PRIMITIVES), 200)]
    figure = draw_graph(primitives, edges, primitives, [""] * 200, title="random")
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    for box in boxes_of(figure):
        bounds = box.get_bbox()
        assert left <= bounds.x0 <= bounds.x1 <= right
        assert top <= bounds.y0 <= bounds.y1 <= bottom


def test_large_graphs_have_boxes_without_labels() -> None:
    num_nodes = MAX_LABELLED_NODES + 1
    edges = [(node, node + 1) for node in range(num_nodes - 1)]
    figure = draw_graph(["conv"] * num_nodes, edges, ["x"] * num_nodes, [""] * num_nodes, title="long")
    assert len(boxes_of(figure)) == num_nodes
    assert len(figure.axes[0].texts) == 0
    assert max(figure.get_size_inches()) < 20


def test_a_single_node_without_edges() -> None:
    assert len(boxes_of(draw_graph(["input"], [], ["input"], [""], title="one"))) == 1


def test_drawing_keeps_out_of_pyplot() -> None:
    sys.modules.pop("matplotlib.pyplot", None)
    draw_block()
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "hf_paraminit\[plots\]"'):
        draw_block()


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("short", "short"),
        ("exactly.ten", "exactly.ten"),
        ("blocks.11.attn.qkv", "…attn.qkv"),
        ("averyveryverylongname", "…rylongname"),
    ],
)
def test_the_beginning_is_cut_off(text: str, shortened: str) -> None:
    assert shorten_front(text, 11) == shortened


# What a dichromat sees, as a linear map of linear sRGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "trichromat": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ_OF_SRGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> NDArray[np.float64]:
    values = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = np.cbrt(np.maximum(XYZ_OF_SRGB @ rgb / [0.9505, 1, 1.089], 1e-4))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_differ_for_every_kind_of_colour_vision(vision: str) -> None:
    seen = {name: lab(np.clip(VISIONS[vision] @ linear(fill), 0, 1)) for name, (fill, _) in COLORS.items()}
    for (first, a), (second, b) in itertools.combinations(seen.items(), 2):
        assert np.linalg.norm(a - b) > 10, f"{first} and {second}"  # about 2 is just noticeable


def test_every_primitive_has_a_colour_and_readable_text() -> None:
    assert set(COLORS) == set(PRIMITIVES)
    for fill, text in COLORS.values():
        luminance = float(XYZ_OF_SRGB[1] @ linear(fill))
        contrast = 1.05 / (luminance + 0.05) if text == "white" else (luminance + 0.05) / 0.05
        assert contrast > 3.5, fill
    assert color_of("something new") == ("#FFFFFF", "black")
