"""Residual branches: parameterised operations whose output is added to an earlier tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_paraminit.structure.dataflow import DataFlow, shape_of, text_of
from hf_paraminit.structure.layers import NORM_SCALE, ParameterKinds

MAX_SHORTCUT_LAYERS = 1  # a projection that adapts the shape; more would be a branch of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualBranch:
    """One branch, by the names of its weights.

    Attributes:
        layers: Its layers in order of execution.
        last_layers: Those whose result is added without another layer in between; usually one.
        last_norms: Norm scales between them and the addition.
        layer_scales: Bare vectors or scalars that multiply the branch before the addition (LayerScale, SkipInit).
    """

    layers: tuple[str, ...]
    last_layers: tuple[str, ...]
    last_norms: tuple[str, ...]
    layer_scales: tuple[str, ...]


def residual_branches(flow: DataFlow, kinds: ParameterKinds) -> tuple[ResidualBranch, ...]:
    """Find the residual branches of a network, in order of execution.

    Of the two results that an addition joins, the branch is the one that more layers of its own led to. The other, the
    shortcut, may have one: the projection of a down-sampling block.
    """
    branches = []
    for function in flow.functions:
        operands = flow.inputs(function)
        if text_of(function) != "Add" or len(operands) != 2:
            continue
        own = [flow.behind[one] & ~flow.behind[other] for one, other in (operands, reversed(operands))]
        counts = [bits.bit_count() for bits in own]
        if counts[0] != counts[1] and min(counts) <= MAX_SHORTCUT_LAYERS:
            longer = counts.index(max(counts))
            branches.append(_branch(operands[longer], own[longer], flow, kinds))
    return tuple(branches)


def _branch(end: Any, own: int, flow: DataFlow, kinds: ParameterKinds) -> ResidualBranch:
    """Describe the branch that ends in `end`; walk back from there to its last layers."""
    last_layers: list[str] = []
    norms: list[str] = []
    scales: list[str] = []
    stack, seen = [end], {end}
    while stack:
        function = stack.pop()
        if function in flow.applied:
            last_layers += flow.applied[function]
            continue
        entering = flow.parameters[function]
        norms += [name for name in entering if kinds.others.get(name) == NORM_SCALE]
        if text_of(function) == "Mul":
            scales += [name for name in entering if name in kinds.reasons]
        fresh = [one for one in _trunk(function, flow) if one not in seen and flow.behind[one] & own]
        seen.update(fresh)
        stack += fresh
    return ResidualBranch(
        layers=flow.layers_in(own),
        last_layers=tuple(dict.fromkeys(last_layers)),
        last_norms=tuple(dict.fromkeys(norms)),
        layer_scales=tuple(dict.fromkeys(scales)),
    )


def _trunk(function: Any, flow: DataFlow) -> list[Any]:
    """The data inputs of a function, without the gates that multiply them."""
    inputs = flow.inputs(function)
    if text_of(function) != "Mul" or len(inputs) < 2:
        return inputs
    return [one for one in inputs if shape_of(one) == shape_of(function)]
