"""He initialization: weights whose variance keeps signals alive through ReLU (arXiv 1502.01852)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.formula import FormulaConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure


@register_initializer(
    "he", summary="normal, variance 2 / fan_out of convolutions, 2 / fan_in of linear layers", paper="1502.01852"
)
class He(StandardFamily):
    """W ~ N(0, 2 / n), equations 10 (n = fan_in) and 14 (n = fan_out) of the paper.

    n is the fan out of convolutions and the fan in of linear layers. As in torch, the fan out of a grouped convolution
    is out * kh * kw; `group_aware` divides it by the number of groups, as the derivation asks.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            group_aware: whether the fan out of grouped convolutions counts one group only.
        """

        group_aware: bool = False

    config: Config
    rule = "He normal"

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        mode: Literal["fan_in", "fan_out"] = "fan_out" if layer.is_conv else "fan_in"
        weight = nn.init.kaiming_normal_(
            torch.empty(layer.shape), mode=mode, nonlinearity="relu", generator=self.generator(layer.name)
        )
        return weight * layer.groups**0.5 if layer.is_conv and self.config.group_aware else weight
