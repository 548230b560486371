"""One model's structure, each part worked out when it is first asked for."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

from torch import nn

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.class_layers import declared_class_layers
from hf_paraminit.graphs.dataflow import behind_views
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.forward_pass import Inputs
from hf_paraminit.graphs.input_size import resolve_input_size
from hf_paraminit.structure.attention import Attention, attentions
from hf_paraminit.structure.dataflow import DataFlow, shape_of, text_of
from hf_paraminit.structure.layers import TABLE, ParameterKinds, WeightLayer, parameter_kinds
from hf_paraminit.structure.residuals import ResidualBranch, residual_branches

_RECTIFIERS = {
    "Relu",
    "LeakyRelu",
    "Prelu",
    "Rrelu",
    "Elu",
    "Gelu",
    "Silu",
    "Hardswish",
    "Hardtanh",
    "Mish",
    "Threshold",
}


class ModelStructure:
    """What formulae need to know about a model. The model is only read.

    `kinds`, `layers` and `class_layers` need no forward pass; everything else traces the model once, on meta tensors,
    and raises `TracingError` where that fails.
    """

    def __init__(self, module: nn.Module, input_size: int | None = None, example_inputs: Any = None) -> None:
        """Remember what to trace.

        Args:
            module: The model.
            input_size: Side of the traced image in pixels; None for what the model declares.
            example_inputs: Arguments to trace with instead, as `hf_paraminit.trace` takes them.
        """
        self.module = module
        self._input_size = input_size
        self._example_inputs = example_inputs

    @cached_property
    def kinds(self) -> ParameterKinds:
        """The parameters by what they are."""
        return parameter_kinds(self.module)

    @property
    def layers(self) -> dict[str, WeightLayer]:
        """Linear and convolutional layers by the name of their weight, in the model's order."""
        return dict(self.kinds.layers)

    @cached_property
    def class_layers(self) -> tuple[str, ...]:
        """Names of the classifiers' weights: declared, or else the linear layer that makes the only scores."""
        declared = declared_class_layers(self.module)
        if declared is None:
            return self._scoring_layer()
        weights = {id(layer._parameters.get("weight")) for layer in declared}
        return tuple(name for name, parameter in self.module.named_parameters() if id(parameter) in weights)

    @property
    def inputs(self) -> Inputs:
        """What the model is traced with."""
        if self._example_inputs is not None:
            return ExampleInputs.of(self._example_inputs)
        return resolve_input_size(self.module, self._input_size)

    @cached_property
    def classifier(self) -> frozenset[str]:
        """Weights and biases of the classifiers."""
        biases = (self.kinds.layers[name].bias for name in self.class_layers)
        return frozenset({*self.class_layers, *(bias for bias in biases if bias is not None)})

    def _scoring_layer(self) -> tuple[str, ...]:
        end = behind_views(self.flow.functions[-1])
        is_scores = end in self.flow.applied and len(shape_of(self.flow.functions[-1])) == 2
        return (
            tuple(name for name in self.flow.applied[end] if not self.kinds.layers[name].is_conv) if is_scores else ()
        )

    @cached_property
    def flow(self) -> DataFlow:
        """Where data meet parameters."""
        return DataFlow(self.module, self.inputs, self.kinds.layers.keys())

    @property
    def used_values(self) -> bool:
        """Whether anything so far depended on the values of the weights."""
        return "flow" in vars(self) and self.flow.used_values

    @property
    def is_traceable(self) -> bool:
        """Whether the forward pass can be traced."""
        try:
            _ = self.flow
        except TracingError:
            return False
        return True

    @cached_property
    def branches(self) -> tuple[ResidualBranch, ...]:
        """Residual branches in order of execution."""
        return residual_branches(self.flow, self.kinds)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """Weights and biases of classifiers and of the last layers of residual branches."""
        weights = [name for branch in self.branches for name in branch.last_layers]
        biases = (self.kinds.layers[name].bias for name in weights)
        return tuple(
            dict.fromkeys([*weights, *(bias for bias in biases if bias is not None), *sorted(self.classifier)])
        )

    @cached_property
    def deep_rows(self) -> dict[str, slice]:
        """The matrices of a transformer that lie between its residual stream and an addition to it.

        Values, attention outputs and MLPs: every layer in a residual branch, but of attention projections only the rows
        that make values.
        """
        rows = {name: slice(None) for branch in self.branches for name in branch.layers}
        for attention in self.attentions:
            for projection in (attention.query, attention.key):
                rows.pop(projection.layer.name, None)
            rows[attention.value.layer.name] = attention.value.rows
        return rows

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Attention layers in order of execution."""
        return attentions(self.flow, self.kinds, self.module)

    @cached_property
    def fused_parts(self) -> dict[str, int]:
        """Weights that make several of query, key and value at once -> how many."""
        used = Counter(
            projection.layer.name
            for attention in self.attentions
            for projection in {attention.query, attention.key, attention.value}
        )
        return {name: count for name, count in used.items() if count > 1}

    @cached_property
    def executed(self) -> tuple[WeightLayer, ...]:
        """Layers in order of first execution; those the output does not depend on are left out."""
        names = dict.fromkeys(name for one in self.flow.applications for name in self.flow.applied[one])
        return tuple(self.kinds.layers[name] for name in names)

    @cached_property
    def stem(self) -> tuple[str, ...]:
        """Weights of the layers that read the input itself."""
        first = [one for one in self.flow.applications if self.flow.behind[one].bit_count() == 1]
        return tuple(dict.fromkeys(name for one in first for name in self.flow.applied[one]))

    @cached_property
    def positions(self) -> tuple[str, ...]:
        """Tables that are added to the tokens."""
        added = [one for one in self.flow.functions if text_of(one) == "Add"]
        names = [name for one in added for name in self.flow.parameters[one]]
        return tuple(dict.fromkeys(name for name in names if self.kinds.others.get(name) == TABLE))

    @cached_property
    def rectified(self) -> frozenset[str]:
        """Weights of the layers whose result next meets a ReLU-like activation."""

        def is_end(function: object) -> bool:
            text = text_of(function)
            return function in self.flow.applied or text in _RECTIFIERS or text == "Add"

        found: set[str] = set()
        for one in self.flow.applications:
            followers = [
                end for start in self.flow.consumers[one] for end in self.flow.nearest(start, self._consumers, is_end)
            ]
            if any(text_of(end) in _RECTIFIERS for end in followers):
                found.update(self.flow.applied[one])
        return frozenset(found)

    def _consumers(self, function: object) -> list[object]:
        return self.flow.consumers[function]
