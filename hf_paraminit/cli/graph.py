"""Draw or export the computational graph of a timm model, as graph hypernetworks read it."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import torch

from hf_paraminit.cli.arguments import Subparsers, positive, verb_parser
from hf_paraminit.cli.timm_models import add_model_arguments, build_model
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.trace import MODES, trace
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.plots.graph import draw_graph

EXAMPLES = """
paraminit graph resnet50 --output resnet50.svg
paraminit graph vit_base_patch16_224 --attention fused --output vit.png
paraminit graph convnext_tiny --mode native --output convnext.svg
paraminit graph test_resnet --num-classes 10 --output graph.graphml
"""

PIXELS_PER_INCH = 150


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "graph", __doc__, examples=EXAMPLES)
    add_model_arguments(parser)
    parser.add_argument(
        "--input-size", type=positive, metavar="N", help="side of the images to trace with (default: the model's own)"
    )
    parser.add_argument(
        "--attention",
        choices=("explicit", "fused"),
        default="explicit",
        help="whether attention shows its softmax (default: explicit)",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="compat",
        help="kind of graph: compat as published predictors read it, native for every architecture, auto for what "
        "init= would use (default: compat)",
    )
    parser.add_argument(
        "--output", required=True, type=_graph_file, metavar="FILE", help=f"file to write: {', '.join(WRITERS)}"
    )


def run(arguments: argparse.Namespace) -> None:
    with torch.device("meta"):  # the graph needs shapes, not weights
        model = build_model(arguments)
    graph = trace(model, input_size=arguments.input_size, attention=arguments.attention, mode=arguments.mode)
    mode = "" if arguments.mode == "compat" else f" ({graph.mode} mode)"
    title = f"{arguments.model}: {len(graph)} nodes, {len(graph.edges)} edges{mode}"
    write = WRITERS[arguments.output.suffix.lower()]
    with atomic_write(arguments.output) as path:
        write(graph, path, title)
    for warning in graph.warnings:
        print(f"paraminit: warning: {warning}", file=sys.stderr)
    print(f"{title}, written to {arguments.output}")


def _write_svg(graph: ComputationalGraph, path: Path, title: str) -> None:
    figure = _draw(graph, title)
    import matplotlib  # optional; `_draw` says so where it is missing

    # text stays text, and neither a date nor random ids make two files of one graph differ
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "paraminit"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _write_png(graph: ComputationalGraph, path: Path, title: str) -> None:
    _draw(graph, title).savefig(path, format="png", dpi=PIXELS_PER_INCH)


def _write_graphml(graph: ComputationalGraph, path: Path, title: str) -> None:
    """Write with the node attributes as text, since GraphML knows no lists."""
    exported = networkx.DiGraph(title=title, mode=graph.mode, attention=graph.attention)
    for index, node in enumerate(graph.nodes):
        exported.add_node(
            index,
            primitive=node.primitive,
            name=node.name,
            shape=_shape_text(node),
            parameters=" ".join(node.parameters),
            cell=node.cell,
        )
    exported.add_edges_from(graph.edges.tolist())
    networkx.write_graphml(exported, path)


def _write_json(graph: ComputationalGraph, path: Path, title: str) -> None:
    path.write_text(json.dumps(graph.to_dict()) + "\n")


WRITERS: dict[str, Callable[[ComputationalGraph, Path, str], None]] = {
    ".svg": _write_svg,
    ".png": _write_png,
    ".graphml": _write_graphml,
    ".json": _write_json,
}


def _graph_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(WRITERS)}")
    return path


def _draw(graph: ComputationalGraph, title: str) -> Any:
    labels = [_label(node) for node in graph.nodes]
    details = [_shape_text(node) for node in graph.nodes]
    return draw_graph(graph.primitives, graph.edges.numpy(), labels, details, title=title)


def _label(node: Node) -> str:
    """Path of the layer that holds the node's parameters; operations without any go by their primitive."""
    return node.parameters[0].rpartition(".")[0] or node.parameters[0] if node.parameters else node.primitive


def _shape_text(node: Node) -> str:
    return "x".join(map(str, node.shape or ()))
