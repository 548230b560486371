"""IDInit: identity-like weights, padded where a layer is not square (arXiv 2503.04626)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.formula import FormulaConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure


@register_initializer("idinit", summary="identity-like weights that repeat their inputs", paper="2503.04626")
class IDInit(StandardFamily):
    """Our reading of the paper's abstract: W[i, j] = tau where i = j modulo the smaller width, else 0.

    Kernels are matrices over the patch, (out, in * kh * kw). The last layers of residual branches and the classifier
    have the same pattern with plus and minus 1e-6 in turn: next to zero, but not dead. Training needs momentum, or
    `noise`, to break the symmetry.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            tau: value on the diagonals.
            eps: the same for last layers.
            noise: standard deviation of noise on all weights.
        """

        tau: float = 1.0
        eps: float = 1e-6
        noise: float = 0.0

    config: Config
    rule = "repeated identity"

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        rows, columns = layer.shape[0], layer.fan_in
        smaller = min(rows, columns)
        pattern = (torch.arange(rows)[:, None] % smaller == torch.arange(columns) % smaller).float()
        if layer.name in model.ends:
            signs = 1.0 - 2.0 * (torch.arange(rows) % 2)
            weight = self.config.eps * signs[:, None] * pattern
        else:
            weight = self.config.tau * pattern
        if self.config.noise:
            weight += self.config.noise * self.normal(weight.shape, layer.name)
        return weight.view(layer.shape)
