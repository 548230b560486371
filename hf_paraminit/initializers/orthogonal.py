"""Orthogonal initialization (Saxe, McClelland and Ganguli, arXiv 1312.6120)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.formula import Drawn, FormulaConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure

RELU_GAIN = nn.init.calculate_gain("relu")


@register_initializer("orthogonal", summary="matrices with orthonormal rows or columns", paper="1312.6120")
class Orthogonal(StandardFamily):
    """W = gain * Q, Q from the QR decomposition of a Gaussian (out, fan_in), signs fixed by the diagonal of R.

    The gain is sqrt(2) for layers that a ReLU-like activation follows and 1 for the others; 1 for all where the model
    cannot be traced.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            gain: one gain for all layers instead.
        """

        gain: float | None = None

    config: Config
    rule = "orthogonal"

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        if self.config.gain is None and not model.is_traceable:
            self.note("the model cannot be traced, so all gains are 1")
        yield from super().draw(model, names)

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        weight = nn.init.orthogonal_(torch.empty(layer.shape), generator=self.generator(layer.name))
        return weight * self._gain(layer, model)

    def _gain(self, layer: WeightLayer, model: ModelStructure) -> float:
        if self.config.gain is not None:
            return self.config.gain
        return RELU_GAIN if model.is_traceable and layer.name in model.rectified else 1.0
