"""Xavier initialization: weights whose variance suits signals and gradients alike (Glorot and Bengio, AISTATS 2010)."""

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure


@register_initializer("xavier", summary="uniform within sqrt(6 / (fan_in + fan_out))", aliases=("glorot",))
class Xavier(StandardFamily):
    """W ~ U(-b, b) with b = sqrt(6 / (fan_in + fan_out)), equation 16 of the paper.

    A layer that makes queries, keys and values at once counts as several square ones. Where the model cannot be traced
    such layers are not recognised, and the report says so.
    """

    rule = "Xavier uniform"

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        num_parts = self.num_parts(layer, model)
        parts = torch.empty(num_parts, layer.shape[0] // num_parts, *layer.shape[1:])
        generator = self.generator(layer.name)
        for part in parts:
            nn.init.xavier_uniform_(part, generator=generator)
        return parts.flatten(0, 1)

    def num_parts(self, layer: WeightLayer, model: ModelStructure) -> int:
        """How many of query, key and value the layer makes; 1 for all other layers."""
        if model.is_traceable:
            return model.fused_parts.get(layer.name, 1)
        if not self._notes:
            self.note("the model cannot be traced, so layers that fuse query, key and value count as one")
        return 1
