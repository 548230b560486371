"""When two architectures are the same: a canonical hash of the graph, and a comparison of widths."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import networkx
from torch import nn

from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace

WIDTH_TOLERANCE = 0.05  # networks whose widths all agree to 5 % count as the same
ITERATIONS = 8  # of Weisfeiler and Lehman's refinement: nodes are told apart by their surroundings up to 8 hops away


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What identifies an architecture, whatever its parameters are called.

    Attributes:
        structure: Hash of operations, kernel sizes and connections, without widths.
        widths: Output and input channels of every parameterised node, sorted within equal surroundings.
    """

    structure: str
    widths: tuple[tuple[str, int, int], ...]

    @property
    def digest(self) -> str:
        """Hash of the structure and of all widths relative to the first layer's."""
        reference = max(1, min((out for _, out, _ in self.widths), default=1))
        relative = [(label, round(out / reference, 2), round(into / reference, 2)) for label, out, into in self.widths]
        return hashlib.sha256(json.dumps([self.structure, relative]).encode()).hexdigest()[:16]

    def is_near(self, other: Fingerprint, tolerance: float = WIDTH_TOLERANCE) -> bool:
        """Whether the structures are equal and no width differs by more than the tolerance."""
        if self.structure != other.structure or len(self.widths) != len(other.widths):
            return False
        return all(
            own_label == label and _is_close(own_out, out, tolerance) and _is_close(own_in, into, tolerance)
            for (own_label, own_out, own_in), (label, out, into) in zip(self.widths, other.widths, strict=True)
        )


def fingerprint(model: nn.Module) -> Fingerprint:
    """Trace a model; the image size it declares decides nothing.

    Raises:
        TracingError: The model cannot be traced.
    """
    return fingerprint_of_graph(trace(model, mode="native"))


def fingerprint_of_graph(graph: ComputationalGraph) -> Fingerprint:
    """The classifier's classes do not count: a network is the same with another head."""
    network = graph.to_networkx()
    for index, node in enumerate(graph.nodes):
        # Kernels only: a position table's last dimensions are its grid.
        kernel = (
            node.shape[2:] if node.shape is not None and len(node.shape) == 4 and node.primitive != "pos_enc" else ()
        )
        network.nodes[index]["label"] = f"{node.primitive} {'x'.join(map(str, kernel))}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about hashes of networkx before 3.5
        refined = networkx.weisfeiler_lehman_subgraph_hashes(network, node_attr="label", iterations=ITERATIONS)
    class_nodes = {graph.class_weight_index, graph.class_bias_index, *graph.more_class_indices}
    widths = sorted(
        (refined[index][-1], *_channels(node.shape))
        for index, node in enumerate(graph.nodes)
        if node.shape is not None and node.parameters and index not in class_nodes
    )
    labels = sorted(hashes[-1] for hashes in refined.values())
    return Fingerprint(hashlib.sha256("".join(labels).encode()).hexdigest()[:16], tuple(widths))


def seen_in_training(evaluated: Fingerprint, trained: Iterable[Fingerprint]) -> bool:
    """Whether a network counts as one that a predictor was trained on."""
    return any(evaluated.is_near(other) for other in trained)


def _channels(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) > 1 else (shape[0], 1)


def _is_close(value: int, other: int, tolerance: float) -> bool:
    return abs(value - other) <= tolerance * max(value, other)
