"""What the standard families share: a distribution for every weight, scale one for norms, zero for biases."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_paraminit.initializers.formula import Drawn, FormulaInitializer
from hf_paraminit.structure.layers import BIAS, NORM_SCALE, NORM_SHIFT, WeightLayer
from hf_paraminit.structure.model import ModelStructure

_CONSTANTS = {NORM_SCALE: ("one", 1.0), NORM_SHIFT: ("zero", 0.0), BIAS: ("zero", 0.0)}


class StandardFamily(FormulaInitializer):
    """Draws every linear and convolutional weight from one distribution; norm scales are 1, shifts and biases 0.

    Tables (embeddings, positions), layer scales and tokens stay as the model made them unless a subclass says more.
    """

    rule: str

    @abc.abstractmethod
    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        """Draw one weight of shape `layer.shape`, float32."""

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        offered = set(names)
        for name, layer in model.layers.items():
            if name in offered:
                yield Drawn(name, self.rule, layer.stored(self.weight(layer, model)))
        shapes = {name: parameter.shape for name, parameter in model.module.named_parameters()}
        for name, kind in model.kinds.others.items():
            if kind in _CONSTANTS:
                rule, constant = _CONSTANTS[kind]
                yield Drawn(name, rule, torch.full(shapes[name], constant))
