"""Delta-orthogonal convolutions: an orthogonal matrix at the centre tap (arXiv 1806.05393)."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.orthogonal import Orthogonal
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import WeightLayer
from hf_paraminit.structure.model import ModelStructure


@register_initializer(
    "delta-orthogonal", summary="orthogonal matrix at the centre tap of each kernel, zero elsewhere", paper="1806.05393"
)
class DeltaOrthogonal(Orthogonal):
    """K[:, :, centre] = gain * Q with orthonormal columns (out >= in) or rows, all other taps zero (algorithm 2).

    Every group of a grouped convolution has a matrix of its own. The gain is 1 unless given, which keeps norms exactly
    in linear networks of any depth. Linear layers are orthogonal.
    """

    rule = "delta-orthogonal"

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        generator = self.generator(layer.name)
        gain = 1.0 if self.config.gain is None else self.config.gain
        blocks = torch.empty(layer.groups, layer.shape[0] // layer.groups, layer.shape[1])
        for block in blocks:
            nn.init.orthogonal_(block, gain, generator=generator)
        return at_centre(blocks.flatten(0, 1), layer)


def at_centre(matrix: Tensor, layer: WeightLayer) -> Tensor:
    """A kernel that applies the matrix (out, in / groups) at its centre tap and nothing elsewhere."""
    weight = torch.zeros(layer.shape)
    centre: tuple[Any, ...] = (..., *(extent // 2 for extent in layer.shape[2:]))
    weight[centre] = matrix
    return weight
