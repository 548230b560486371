"""Maximal update parametrization: scales under which learning rates carry over between widths (arXiv 2203.03466)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure

WidthRole = Literal["input", "hidden", "output", "fixed"]


@register_initializer(
    "mup", summary="the model's own values, scaled for learning rates that carry over widths", paper="2203.03466"
)
class MuP(FormulaInitializer):
    """Scales the values that the model has, in the form without forward multipliers (table 3 of the paper, for Adam).

    With a base model of the same depth: "input" weights (only fan_out grows) get the base's standard deviation,
    "hidden" ones that times sqrt(n0 / n), and "output" ones that times n0 / n, where n0 and n are the two fans in.
    Vectors and weights of the base's own shape stay exactly as they are. Without a base, weights are taken to follow 1
    / sqrt(fan_in) already, so that only outputs are scaled, by sqrt(1 / width_multiplier). Learning rates belong to it:
    `parameter_groups`. Constants are from general knowledge of the paper, not compared with its code.
    """

    reads_values = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            base: the same architecture at the width where learning rates were tuned, as a module.
            width_multiplier: width of the model over that of the base, where no base is given.
            zero_output: whether classifiers start at zero instead.
        """

        base: Any = None
        width_multiplier: float = 1.0
        zero_output: bool = False

        def validate(self) -> None:
            if self.base is not None and not isinstance(self.base, nn.Module):
                raise ValueError(f"base must be a module, found a {type(self.base).__name__}")
            if self.width_multiplier <= 0:
                raise ValueError(f"width_multiplier must be positive, found {self.width_multiplier}")

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        base = None if self.config.base is None else ModelStructure(self.config.base)
        if model.is_traceable and model.attentions:
            self.note("muP also divides attention scores by head_dim instead of its root; that is architecture")
        for name, role in width_roles(model, base, self.config.width_multiplier).items():
            if role == "output" and self.config.zero_output:
                yield Drawn(name, "zero output", torch.zeros(model.module.get_parameter(name).shape))
            elif role != "fixed" and (factor := self._factor(model, base, name, role)) != 1:
                yield Drawn(name, f"{role}, its own value x {factor:.3g}", factor * self.current(model, name))
            else:
                self.skip(name, f"a weight whose scale is right as it is ({role})")

    def _factor(self, model: ModelStructure, base: ModelStructure | None, name: str, role: WidthRole) -> float:
        if base is None:
            return self.config.width_multiplier**-0.5 if role == "output" else 1.0
        own, reference = (one.module.get_parameter(name).std(correction=0).item() for one in (model, base))
        if own == 0 or reference == 0:
            return 1.0
        shrinkage = base.layers[name].fan_in / model.layers[name].fan_in
        return reference / own * {"input": 1.0, "hidden": shrinkage**0.5, "output": shrinkage}[role]


def width_roles(model: ModelStructure, base: ModelStructure | None, width_multiplier: float) -> dict[str, WidthRole]:
    """Which fans of every linear and convolutional weight grow with width: both, one, or none ("fixed").

    Args:
        model: the model.
        base: the same architecture at its base width; without it, layers that read the input and classifiers are told
            by the data flow, and everything between counts as hidden.
        width_multiplier: 1 means that nothing grows, where there is no base.
    """
    if base is None:
        if width_multiplier == 1:
            return dict.fromkeys(model.layers, "fixed")
        ends: dict[str, WidthRole] = {}
        ends.update(dict.fromkeys(model.stem, "input"))
        ends.update(dict.fromkeys(model.class_layers, "output"))
        return {name: ends.get(name, "hidden") for name in model.layers}
    return {name: _role(layer, base.layers[name]) for name, layer in model.layers.items() if name in base.layers}


def parameter_groups(
    model: nn.Module, learning_rate: float, base: nn.Module | None = None, width_multiplier: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups for Adam or AdamW: hidden and output weights learn at the rate times n0 / n.

    Args:
        model: the model.
        learning_rate: tuned at the base width.
        base: the model at the base width.
        width_multiplier: width of the model over that of the base, where no base is given.

    Returns:
        Groups with `params`, `lr` and `lr_multiplier`, one per multiplier.
    """
    structure, reference = ModelStructure(model), None if base is None else ModelStructure(base)
    roles = width_roles(structure, reference, width_multiplier)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        multiplier = 1.0
        if roles.get(name) in ("hidden", "output"):
            base_fan = (
                structure.layers[name].fan_in / width_multiplier if reference is None else reference.layers[name].fan_in
            )
            multiplier = base_fan / structure.layers[name].fan_in
        groups.setdefault(multiplier, []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * multiplier, "lr_multiplier": multiplier}
        for multiplier, parameters in groups.items()
    ]


def _role(layer: WeightLayer, base: WeightLayer) -> WidthRole:
    grows_in, grows_out = layer.shape[1] != base.shape[1], layer.shape[0] != base.shape[0]
    if grows_in:
        return "hidden" if grows_out else "output"
    return "input" if grows_out else "fixed"
