"""From a module to its computational graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.autograd_walk import parameter_owners, walk_autograd
from hf_paraminit.graphs.compat import build_compat_graph
from hf_paraminit.graphs.forward_pass import run_forward
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.input_size import resolve_input_size

# How the walked operations become a graph, by mode.
GRAPH_BUILDERS = {"compat": build_compat_graph}


def trace(
    model: nn.Module,
    *,
    input_size: int | Sequence[int] | None = None,
    attention: Literal["explicit", "fused"] = "explicit",
    mode: Literal["compat", "native"] = "compat",
    virtual_edge_cutoff: int = 50,
) -> ComputationalGraph:
    """Trace a model into the graph that graph hypernetworks read.

    The graph is read off the autograd graph of one forward pass (batch of 2) of a copy of the model on the meta device,
    in the train/eval mode the model is in. The model itself is not touched, and no memory for weights is needed.

    Args:
        model: Any module that takes one batch of images.
        input_size: Side of a square image in pixels, or (channels, height, width); by default what the model declares
            (`expected_input_sz`, timm's traits), else 3 x 224 x 224 (299 for torchvision's Inception v3).
        attention: "explicit" shows the softmax of every attention as an `msa` node, as in the graphs that published
            checkpoints were validated on; "fused" shows what the fused CPU kernel leaves in the autograd graph.
        mode: "compat", the graph of published GHN-2 and GHN-3 checkpoints.
        virtual_edge_cutoff: Longest path that gets a virtual edge, in hops; 1 for none.

    Returns:
        The graph.

    Raises:
        TracingError: For a model without parameters, one whose forward pass fails or whose outputs cannot be
            differentiated, and for arguments that are not among those above.
    """
    if not isinstance(model, nn.Module):
        raise TracingError(f"Cannot trace a {type(model).__name__}: expected a torch.nn.Module.")
    if mode not in GRAPH_BUILDERS:
        raise TracingError(f"mode={mode!r} is not part of this version; available: {', '.join(GRAPH_BUILDERS)}.")
    if attention not in ("explicit", "fused"):
        raise TracingError(f"attention={attention!r} is unknown; expected 'explicit' or 'fused'.")
    size = resolve_input_size(model, input_size)
    is_explicit = attention == "explicit"
    replica, roots = run_forward(model, size, explicit=is_explicit)
    operations = walk_autograd(roots, parameter_owners(replica), explicit=is_explicit)
    return GRAPH_BUILDERS[mode](
        operations, replica, input_size=size, virtual_edge_cutoff=virtual_edge_cutoff, attention=attention
    )
