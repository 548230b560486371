"""From what DeepNets-1M files say of a graph to the graph that hypernetworks read: names, primitives and repairs.

The files leave a parameter's cell out of its name, and published ones differ in the names of some layers.

Axes: N nodes, M edges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_paraminit.deepnets.wiring import parameters_of
from hf_paraminit.graphs.graph import Node
from hf_paraminit.graphs.primitives import PRIMITIVE_INDEX

_PARAMETER_PRIMITIVES = frozenset({"conv", "sep_conv", "dil_conv", "bias", "bn", "ln", "pos_enc"})
_POOLINGS = frozenset({"max_pool", "avg_pool"})
_MULTIPLE_INPUTS = frozenset({"concat", "sum", "cse"})
_POOLING_SHAPE = (1, 1, 3, 3)  # all pooling counts as 3x3
_POINTWISE_SHAPE = (16, 3, 1, 1)  # of a layer stored as conv_1x1; for display only


# --- Nodes -----------------------------------------------------------------------------------------------------------


def stored_node(stored_primitive: str, cell: int, stored_name: str) -> Node:
    """Return a node as hypernetworks read it from what a file says.

    Raises:
        ValueError: The primitive is unknown.
    """
    primitive = primitive_of(stored_primitive)
    if primitive not in PRIMITIVE_INDEX:
        raise ValueError(f"unknown primitive {stored_primitive!r}")
    name = full_name(stored_name, cell)
    is_in_stem = name.startswith(("stem", "pos_enc"))
    shape = None
    if primitive in _POOLINGS and not is_in_stem:
        shape = _POOLING_SHAPE
    elif stored_primitive == "conv_1x1":
        shape = _POINTWISE_SHAPE
    parameters: tuple[str, ...] = ()
    if primitive in _PARAMETER_PRIMITIVES:  # networks without batch norm are stored without ".weight"
        parameters = parameters_of(name if name.endswith((".weight", ".bias")) else f"{name}.weight", primitive)
    is_listed = primitive in _PARAMETER_PRIMITIVES or primitive in _POOLINGS
    return Node(primitive, shape, parameters, cell if is_listed else -1, name)


def primitive_of(stored: str) -> str:
    """Return the vocabulary entry of a stored primitive, which may carry a kernel size ("sep_conv_3x3")."""
    if stored.startswith("conv_"):
        return "conv"
    if "conv_" in stored or "pool_" in stored:
        return stored[:-4]
    return "bias" if stored == "fc-b" else stored


def full_name(stored: str, cell: int) -> str:
    """Return the path of a parameter in the network from its stored name, which leaves out its cell."""
    if stored.startswith("classifier"):
        return stored
    name = stored or "input"
    if "attn." not in name:
        name = re.sub(r"to_(qkv|out)", r"attn.to_\1", name)
    if name.endswith("to_out.0."):
        name += "weight"
    name = re.sub(r"(_ops\.\d+\.)(?=\d)", r"\1op.", name)
    name = f"cells.{cell}.{name}"
    start = next((name.index(part) for part in ("stem", "pos_enc") if part in name), 0)
    return name[start:]


def stored_name(name: str) -> str:
    """Return the name that the files have for a parameter; the inverse of `full_name`."""
    return re.sub(r"^cells\.\d+\.", "", name).replace("attn.to_", "to_")


# --- Wiring ----------------------------------------------------------------------------------------------------------


def repair_wiring(distances: NDArray[np.int64], nodes: tuple[Node, ...], *, has_two_stems: bool) -> bool:
    """Undo the two known defects of published graphs, as GHN-3 does; return whether there were any.

    Where the second cell hangs on the wrong output of a double stem, its edge moves to the right one. Operations with
    one input that got several keep the first.

    Args:
        distances: (N, N) path lengths, edited in place where they are 0 or 1.
        nodes: The N nodes.
        has_two_stems: Whether the stem has two outputs (type 1, no attention).
    """
    is_edge = distances == 1
    before = is_edge.copy()
    if has_two_stems:
        _move_second_cell(is_edge, nodes)
    for target, node in enumerate(nodes):
        sources = np.flatnonzero(is_edge[:, target])
        if len(sources) > 1 and node.primitive not in _MULTIPLE_INPUTS:
            is_edge[sources[1:], target] = False
    if np.array_equal(is_edge, before):
        return False
    distances[before] = 0
    distances[is_edge] = 1
    return True


def _move_second_cell(is_edge: NDArray[np.bool_], nodes: tuple[Node, ...]) -> None:
    first, second = (_last_of(nodes, stem) for stem in ("stem0.", "stem1."))
    if first is None or second is None:
        return
    targets = np.flatnonzero(is_edge[first])
    is_suspect = len(targets) > 1 and targets[-1] != targets[-2] + 1
    if is_suspect and is_edge[second].sum() == 1:
        is_edge[first, targets[-1]] = False
        is_edge[second, targets[-1]] = True


def _last_of(nodes: tuple[Node, ...], prefix: str) -> int | None:
    return max((index for index, node in enumerate(nodes) if node.name.startswith(prefix)), default=None)


def has_two_stems(record: Mapping[str, Any]) -> bool:
    """Return whether the stem of a described network has two outputs: type 1, and no attention."""
    genotype = record["genotype"]
    has_attention = any(operation == "msa" for operation, _ in [*genotype["normal"], *genotype["reduce"]])
    return record["stem_type"] == 1 and not has_attention


def one_hop_edges(distances: NDArray[np.int64]) -> Tensor:
    """Return the (M, 2) rows (source, target) of the edges among (N, N) path lengths, in row-major order."""
    return torch.from_numpy(np.argwhere(distances == 1).astype(np.int64))
