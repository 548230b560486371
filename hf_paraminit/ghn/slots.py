"""Which decoder fills which tensor of the target network (GHN-3, arXiv 2303.04143, section 3; ppuda, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from hf_paraminit.ghn.shape_code import is_position_table
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.roles import is_channels_last_grid

_KERNEL_PRIMITIVES = frozenset({"conv", "sep_conv", "dil_conv"})


class Role(Enum):
    """The decoder that a tensor comes from."""

    KERNEL = "kernel"  # matrices and convolution kernels
    CLASS_WEIGHT = "class weight"
    POSITION_TABLE = "position table"
    NORM_WEIGHT = "norm weight"  # and any other 1-D weight, and 3-D tensors that are no position table
    BIAS = "bias"
    CLASS_BIAS = "class bias"


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor to fill.

    Attributes:
        name: Parameter name in the target network.
        shape: Its shape.
        node: Node that it is decoded from, counted over all graphs of a meta-batch.
        graph: Which graph of the meta-batch it belongs to.
        role: Which decoder fills it.
        tap_share: Share of a kernel's taps that fall on the map, not on zero padding (`Node.tap_share`).
    """

    name: str
    shape: tuple[int, ...]
    node: int
    graph: int
    role: Role
    tap_share: float = 1.0

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Height and width of the block to decode, 1 x 1 for matrices and classifiers."""
        if self.role is Role.CLASS_WEIGHT:
            return 1, 1
        if self.role is Role.POSITION_TABLE:
            if len(self.shape) == 4:
                return self.shape[1], self.shape[2]
            side = math.isqrt(self.shape[1])
            return side, side
        # The depth of a 3-D kernel is filled by repetition.
        height, width = (*(self.shape[3:] if len(self.shape) == 5 else self.shape[2:]), 1, 1)[:2]
        return height, width

    @property
    def channels(self) -> tuple[int, int]:
        """Output and input channels of the block to decode."""
        if self.role is Role.POSITION_TABLE:
            return 1, self.shape[-1]
        return self.shape[0], self.shape[1]


def iter_slots(
    graph: ComputationalGraph, shapes: Mapping[str, tuple[int, ...]], *, graph_index: int = 0, offset: int = 0
) -> Iterator[Slot]:
    """Yield a slot for each parameter that a node carries and the target network has; of several uses the first.

    Args:
        graph: Computational graph of the target network.
        shapes: Shape of each parameter of the target network.
        graph_index: Position in the meta-batch.
        offset: Number of nodes in the graphs before.
    """
    yielded: set[str] = set()
    for index, node in enumerate(graph.nodes):
        for position, name in enumerate(node.parameters):
            if name in shapes and name not in yielded:
                yielded.add(name)
                shape = tuple(shapes[name])
                role = _role(graph, index, shape, is_bias=node.primitive == "bias" or position > 0)
                yield Slot(name, shape, offset + index, graph_index, role, node.tap_share)


def _role(graph: ComputationalGraph, index: int, shape: tuple[int, ...], *, is_bias: bool) -> Role:
    is_of_further_classifier = index in graph.more_class_indices
    if len(shape) <= 1:
        if index == graph.class_bias_index or is_of_further_classifier:
            return Role.CLASS_BIAS
        return Role.BIAS if is_bias else Role.NORM_WEIGHT
    if index == graph.class_weight_index or is_of_further_classifier:
        return Role.CLASS_WEIGHT
    if len(shape) == 3 and graph.nodes[index].primitive in _KERNEL_PRIMITIVES:
        return Role.KERNEL  # of a 1-D convolution
    if is_position_table(shape) or _is_channels_last_table(graph.nodes[index], shape):
        return Role.POSITION_TABLE
    if len(shape) == 3:
        return Role.NORM_WEIGHT
    return Role.KERNEL


def coded_shape(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Shape of a node as the shape code sees it: the network's own for parameters, the window for pooling."""
    if not node.parameters:
        return node.shape
    shape = shapes.get(node.parameters[0])
    if shape is not None and _is_channels_last_table(node, shape):
        return (1, shape[3], *shape[1:3])
    return shape


def _is_channels_last_table(node: Node, shape: tuple[int, ...]) -> bool:
    return node.primitive == "pos_enc" and is_channels_last_grid(tuple(shape))
