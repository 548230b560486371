"""Show one network: its description, and on request a picture or export of its graph.

NAME is a split (then the number of the network follows) or one of the named genotypes.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, count, positive, seed, verb_parser
from hf_paraminit.cli.graph import WRITERS
from hf_paraminit.deepnets.catalog import PREDEFINED, PREDEFINED_SPLIT, networks_of
from hf_paraminit.deepnets.described import DescribedNetworks
from hf_paraminit.deepnets.genotype import NAMED_GENOTYPES, ArchitectureError, Genotype
from hf_paraminit.deepnets.splits import SPLITS
from hf_paraminit.deepnets.wiring import wire
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace
from hf_paraminit.io.atomic import atomic_write

EXAMPLES = """
paraminit deepnets show test 0
paraminit deepnets show val 7 --data data --output val-7.svg
paraminit deepnets show DARTS --channels 48 --cells 14 --output darts.png
paraminit deepnets show predefined 1 --large-images
"""

NAMES = (*SPLITS, PREDEFINED_SPLIT, *NAMED_GENOTYPES)


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "show", __doc__, examples=EXAMPLES)
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("index", metavar="INDEX", nargs="?", type=count, help="number of the network in its split")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="HDF5 file or its folder (default: networks as this package draws them)",
    )
    parser.add_argument("--num-classes", type=positive, default=10, metavar="N", help="classes (default: 10)")
    parser.add_argument("--large-images", action="store_true", help="for 224-pixel images (default: 32 pixels)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the widths in training (default: 0)")
    parser.add_argument("--channels", type=positive, metavar="N", help="width of a named genotype (default: 32)")
    parser.add_argument("--cells", type=positive, metavar="N", help="cells of a named genotype (default: 14)")
    parser.add_argument(
        "--output", type=_graph_file, metavar="FILE", help=f"write the graph to a file: {', '.join(WRITERS)}"
    )
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    description, graph = _network(arguments)
    title = _title(arguments)
    if arguments.output is not None:
        heading = f"{title}: {len(graph)} nodes, {len(graph.edges)} edges"
        with atomic_write(arguments.output) as path:
            WRITERS[arguments.output.suffix.lower()](graph, path, heading)
    if arguments.json:
        print(json.dumps(description, indent=2))
        return
    print(title)
    print("\n".join(_lines(description)))
    if arguments.output is not None:
        print(f"Graph written to {arguments.output}")


def _network(arguments: argparse.Namespace) -> tuple[dict[str, Any], ComputationalGraph]:
    task = {"num_classes": arguments.num_classes, "is_imagenet_input": arguments.large_images}
    if arguments.name in NAMED_GENOTYPES:
        if arguments.index is not None or arguments.data is not None:
            raise ArchitectureError(f"{arguments.name} is a genotype, not a split: leave out INDEX and --data.")
        return _described(_named_arguments(arguments) | task)
    if arguments.index is None:
        raise ArchitectureError(f"Which network of {arguments.name!r}? Add its number: show {arguments.name} 0")
    if arguments.channels is not None or arguments.cells is not None:
        raise ArchitectureError("--channels and --cells are for named genotypes; the splits fix both.")
    options = {} if arguments.name == PREDEFINED_SPLIT else {"seed": arguments.seed}
    networks = networks_of(arguments.name, arguments.data, **task, **options)
    if arguments.index >= len(networks):
        raise ArchitectureError(
            f"{arguments.name!r} has no network {arguments.index}: expected 0 to {len(networks) - 1}."
        )
    if isinstance(networks, DescribedNetworks):
        return _described(networks.arguments(arguments.index), networks.graph(arguments.index))
    network = networks[arguments.index]
    graph = networks.graph(arguments.index) or trace(network)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"network": PREDEFINED[arguments.index]} | task | _sizes(graph, parameters), graph


def _named_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """A named genotype in the usual network around it; the ViT is narrow and without preprocessing, as published."""
    genotype = NAMED_GENOTYPES[arguments.name]
    single = {"preproc": False, "C_mult": 1} if genotype.has_single_output_state else {}
    return {
        "genotype": genotype.to_dict(),
        "C": arguments.channels or 32,
        "n_cells": arguments.cells or 14,
        "norm": "bnorm",
        **single,
    }


def _described(
    arguments: dict[str, Any], graph: ComputationalGraph | None = None
) -> tuple[dict[str, Any], ComputationalGraph]:
    wiring = wire(arguments)
    graph = wiring.to_graph() if graph is None else graph
    return arguments | _sizes(graph, wiring.num_parameters), graph


def _sizes(graph: ComputationalGraph, num_parameters: int) -> dict[str, Any]:
    return {
        "parameters": num_parameters,
        "nodes": len(graph),
        "edges": len(graph.edges),
        "longest distance": int(graph.distances.max()),
        "primitives": dict(Counter(graph.primitives).most_common()),
    }


def _title(arguments: argparse.Namespace) -> str:
    return arguments.name if arguments.index is None else f"{arguments.name} {arguments.index}"


def _lines(description: dict[str, Any]) -> Iterator[str]:
    for key, value in description.items():
        if key == "genotype":
            yield from _cell_lines(Genotype.from_dict(value))
        elif isinstance(value, dict):
            yield f"  {key}: {', '.join(f'{name} {number}' for name, number in value.items())}"
        else:
            yield f"  {key}: {value}"


def _cell_lines(genotype: Genotype) -> Iterator[str]:
    for name, is_reduction in (("normal cell", False), ("reduction cell", True)):
        connections, concat = genotype.cell(is_reduction=is_reduction)
        steps = [
            f"{first}({s}) + {second}({t})"
            for (first, s), (second, t) in zip(connections[::2], connections[1::2], strict=True)
        ]
        numbered = "; ".join(f"state {2 + step} = {text}" for step, text in enumerate(steps))
        yield f"  {name}: {numbered}; output = states {', '.join(map(str, concat))}"


def _graph_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(WRITERS)}")
    return path
