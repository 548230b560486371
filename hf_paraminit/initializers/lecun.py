"""LeCun initialization in the form of the JAX vision transformers (arXiv 2010.11929)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.formula import Drawn
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.trunc02 import CUT_STD
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure

MLP_BIAS_STD = 1e-6  # of the released vision transformers in JAX


@register_initializer("lecun", summary="truncated normal of variance 1 / fan_in, head zero", paper="2010.11929")
class Lecun(StandardFamily):
    """W ~ N(0, 1 / fan_in) cut at two standard deviations and divided by 0.8796; the classifier starts at zero.

    Biases inside residual branches that hold no attention (the MLPs) are N(0, 1e-6^2), where the model can be traced.
    """

    rule = "LeCun truncated normal"

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        if layer.name in model.class_layers:
            return torch.zeros(layer.shape)
        weight = nn.init.trunc_normal_(torch.empty(layer.shape), generator=self.generator(layer.name))
        return weight.mul_(layer.fan_in**-0.5 / CUT_STD)

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        yield from super().draw(model, names)
        if not model.is_traceable:
            return
        attending = {attention.query.layer.name for attention in model.attentions}
        for branch in model.branches:
            if attending.isdisjoint(branch.layers):
                for layer in (model.layers[name] for name in branch.layers):
                    if layer.bias is not None:
                        yield Drawn(layer.bias, "MLP bias", MLP_BIAS_STD * self.normal((layer.shape[0],), layer.bias))
