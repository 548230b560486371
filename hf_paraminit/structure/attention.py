"""Attention layers, found by what they compute: a softmax of the product of two projections, applied to a third."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_paraminit.structure.dataflow import DataFlow, shape_of, text_of
from hf_paraminit.structure.layers import ParameterKinds, WeightLayer

_PRODUCTS = ("Bmm", "Baddbmm", "Mm", "Addmm")
_NUM_HEADS = ("num_heads", "num_attention_heads", "n_head")  # as timm, torch and Transformers spell it


@dataclass(frozen=True, slots=True)
class Projection:
    """The rows of a layer that make the queries, keys or values: all of them, or a part of a fused layer.

    Attributes:
        layer: The layer.
        first: First row.
        num_rows: Number of rows.
    """

    layer: WeightLayer
    first: int
    num_rows: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.num_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One attention layer.

    Attributes:
        query: Where queries come from.
        key: Where keys come from; under grouped queries it has fewer rows.
        value: Where values come from.
        output: The layer that mixes the heads, None where there is none.
        head_dim: Width of one head's queries and keys.
    """

    query: Projection
    key: Projection
    value: Projection
    output: WeightLayer | None
    head_dim: int

    @property
    def num_heads(self) -> int:
        return self.query.num_rows // self.head_dim

    @property
    def num_key_heads(self) -> int:
        return self.key.num_rows // self.head_dim


def attentions(flow: DataFlow, kinds: ParameterKinds, model: nn.Module) -> tuple[Attention, ...]:
    """Find the attention layers whose projections are linear, in order of execution."""
    found = []
    for function in flow.functions:
        text = text_of(function)
        if "Softmax" in text and "LogSoftmax" not in text:
            found.append(_attention(function, flow, kinds, model))
    return tuple(dict.fromkeys(attention for attention in found if attention is not None))


def _attention(softmax: Any, flow: DataFlow, kinds: ParameterKinds, model: nn.Module) -> Attention | None:
    scores = _only(flow.nearest(softmax, flow.inputs, lambda function: _is_stop(function, flow)))
    mixing = _only(flow.nearest(softmax, lambda f: flow.consumers[f], lambda function: _is_stop(function, flow)))
    if scores is None or mixing is None or not (_is_product(scores, flow) and _is_product(mixing, flow)):
        return None
    queries, keys = flow.inputs(scores)

    def stops_at_softmax(function: Any) -> bool:
        return function is softmax or _is_stop(function, flow)

    values = [one for one in flow.inputs(mixing) if softmax not in flow.nearest(one, flow.inputs, stops_at_softmax)]
    if len(values) != 1:
        return None
    names = [_source(one, flow) for one in (queries, keys, values[0])]
    if any(name is None or name not in kinds.layers for name in names):
        return None
    query, key, value = _projections([kinds.layers[str(name)] for name in names])
    mixed = _only(flow.nearest(mixing, lambda f: flow.consumers[f], lambda function: function in flow.applied))
    attention = Attention(
        query=query,
        key=key,
        value=value,
        output=None if mixed is None else kinds.layers[flow.applied[mixed][0]],
        head_dim=shape_of(queries)[-1],
    )
    return attention if _is_sound(attention, shape_of(values[0])[-1], model) else None


def _projections(layers: list[WeightLayer]) -> list[Projection]:
    """Split fused layers into equal parts, in the order query, key, value."""
    shares = Counter(layer.name for layer in layers)
    seen: Counter[str] = Counter()
    projections = []
    for layer in layers:
        num_rows = layer.shape[0] // shares[layer.name]
        projections.append(Projection(layer, seen[layer.name] * num_rows, num_rows))
        seen[layer.name] += 1
    return projections


def _is_sound(attention: Attention, value_dim: int, model: nn.Module) -> bool:
    """Whether projections are linear, and the heads divide their rows and agree with what the module declares.

    Attention over channels (XCiT) multiplies along tokens, so its number of heads comes out wrong.
    """
    if any(projection.layer.window > 1 for projection in (attention.query, attention.key, attention.value)):
        return False
    if attention.query.num_rows % attention.head_dim or attention.key.num_rows % attention.head_dim:
        return False
    if attention.value.num_rows != attention.num_key_heads * value_dim:  # a fused layer of unequal parts
        return False
    path = attention.query.layer.name
    while "." in path:
        path = path.rpartition(".")[0]  # the parameter's own name first
        for attribute in _NUM_HEADS:
            declared = getattr(model.get_submodule(path), attribute, None)
            if isinstance(declared, int):
                return declared == attention.num_heads
    return True


def _source(function: Any, flow: DataFlow) -> str | None:
    """The one layer that a result comes from, past reshaping, scaling, rotation and norms."""
    nearest = flow.nearest(function, flow.inputs, lambda one: one in flow.applied)
    names = {name for one in nearest for name in flow.applied[one]}
    return names.pop() if len(names) == 1 else None


def _is_stop(function: Any, flow: DataFlow) -> bool:
    return _is_product(function, flow) or function in flow.applied


def _is_product(function: Any, flow: DataFlow) -> bool:
    return text_of(function) in _PRODUCTS and len(flow.inputs(function)) == 2


def _only(functions: list[Any]) -> Any:
    return functions[0] if len(functions) == 1 else None
