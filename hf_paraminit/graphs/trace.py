"""From a module to its computational graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.autograd_walk import parameter_owners, walk_autograd
from hf_paraminit.graphs.compat import build_compat_graph
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.forward_pass import Inputs, run_forward
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.input_size import resolve_input_size
from hf_paraminit.graphs.native import build_native_graph

MODES = ("compat", "native", "auto")
# Share of the elements that a compat graph may leave out before "auto" prefers the native one.
MAX_UNCOVERED = 0.01


def trace(
    model: nn.Module,
    *,
    input_size: int | Sequence[int] | None = None,
    attention: Literal["explicit", "fused"] = "explicit",
    mode: Literal["compat", "native", "auto"] = "compat",
    virtual_edge_cutoff: int = 50,
    example_inputs: Any = None,
) -> ComputationalGraph:
    """Trace a model into the graph that graph hypernetworks read.

    The graph is read off the autograd graph of one forward pass (batch of 2) of a copy of the model on the meta device,
    in the train/eval mode the model is in. The model itself is not touched, and no memory for weights is needed.

    Args:
        model: Any module that takes one batch of images, or `example_inputs`.
        input_size: Side of a square image in pixels, or (channels, height, width); by default what the model declares
            (`expected_input_sz`, timm's traits), else 3 x 224 x 224 (299 for torchvision's Inception v3).
        attention: "explicit" shows the softmax of every attention as an `msa` node, as in the graphs that published
            checkpoints were validated on; "fused" shows what the fused CPU kernel leaves in the autograd graph.
        mode: "compat", the graph of published GHN-2 and GHN-3 checkpoints; "native", which covers every architecture,
            finds the classifier by the model's declaration and shows a re-used layer once per use; "auto", compat
            unless it cannot be traced, is cyclic, does not start at the input, or leaves more than 1 % of the
            elements out.
        virtual_edge_cutoff: Longest path that gets a virtual edge, in hops; 1 for none.
        example_inputs: What to call the model with instead of a batch of images, for models that take token ids, a
            sound, a video, several inputs: a tensor, a tuple of arguments, or a dict of keyword arguments. Only shapes
            and dtypes count (floating point becomes float32) unless the model computes with values to choose its way.
            Batch norm in train mode wants two samples at least.

    Returns:
        The graph.

    Raises:
        TracingError: For a model without parameters, one whose forward pass fails or whose outputs cannot be
            differentiated, and for arguments that are not among those above.
    """
    if not isinstance(model, nn.Module):
        raise TracingError(f"Cannot trace a {type(model).__name__}: expected a torch.nn.Module.")
    if mode not in MODES:
        raise TracingError(f"mode={mode!r} is unknown; expected one of {', '.join(map(repr, MODES))}.")
    if attention not in ("explicit", "fused"):
        raise TracingError(f"attention={attention!r} is unknown; expected 'explicit' or 'fused'.")
    inputs = _inputs(model, input_size, example_inputs)
    if mode == "native":
        return _trace_native(model, inputs, attention, virtual_edge_cutoff)
    if mode == "compat":
        return _trace_compat(model, inputs, attention, virtual_edge_cutoff)
    try:
        graph = _trace_compat(model, inputs, attention, virtual_edge_cutoff)
    except TracingError:
        return _trace_native(model, inputs, attention, virtual_edge_cutoff)
    return graph if _is_sound(graph, model) else _trace_native(model, inputs, attention, virtual_edge_cutoff)


def _inputs(model: nn.Module, input_size: int | Sequence[int] | None, example_inputs: Any) -> Inputs:
    if example_inputs is None:
        return resolve_input_size(model, input_size)
    if input_size is not None:
        raise TracingError("Pass input_size= or example_inputs=, not both: an example has a size.")
    return ExampleInputs.of(example_inputs)


def _image_size(inputs: Inputs) -> tuple[int, int, int] | None:
    return None if isinstance(inputs, ExampleInputs) else inputs


def _trace_compat(model: nn.Module, inputs: Inputs, attention: str, virtual_edge_cutoff: int) -> ComputationalGraph:
    is_explicit = attention == "explicit"
    run = run_forward(model, inputs, explicit=is_explicit)
    operations = walk_autograd(run.roots, parameter_owners(run.replica), explicit=is_explicit)
    graph = build_compat_graph(
        operations,
        run.replica,
        input_size=_image_size(inputs),
        virtual_edge_cutoff=virtual_edge_cutoff,
        attention=attention,
    )
    return replace(graph, used_values=run.used_values)


def _trace_native(model: nn.Module, inputs: Inputs, attention: str, virtual_edge_cutoff: int) -> ComputationalGraph:
    run = run_forward(model, inputs, explicit=attention == "explicit", show_data=True)
    graph = build_native_graph(
        run.roots,
        run.replica,
        sample=run.sample,
        input_size=_image_size(inputs),
        virtual_edge_cutoff=virtual_edge_cutoff,
        attention=attention,
    )
    return replace(graph, used_values=run.used_values)


def _is_sound(graph: ComputationalGraph, model: nn.Module) -> bool:
    """Whether a compat graph is acyclic, starts at the input, and leaves out next to nothing."""
    covered = set(graph.parameter_names)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    num_uncovered = sum(size for name, size in sizes.items() if name not in covered)
    return not graph.warnings and graph.input_index == 0 and num_uncovered <= MAX_UNCOVERED * sum(sizes.values())
