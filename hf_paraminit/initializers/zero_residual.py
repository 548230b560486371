"""Residual branches that start closed: zero last norm scale (arXiv 1706.02677), SkipInit (2002.10444), LayerScale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.model import ModelStructure


@register_initializer(
    "zero-residual", summary="residual branches start at zero: last norm, LayerScale or last layer", paper="1706.02677"
)
class ZeroResidual(FormulaInitializer):
    """The last norm scale of every residual branch is 0, as in arXiv 1706.02677, section 5.1.

    A branch without such a norm has its LayerScale set to a small value (CaiT, arXiv 2103.17239), or else the weights
    and biases of its last layers set to 0. Branches are found where an addition joins two results, not by name.
    Thresholds of the LayerScale values are our reading: 0.1 up to 12 layers, 1e-4 up to 24, and 1e-6 for deeper
    transformers and for convolutional networks.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            norm_scale: start of the last norms. Any value but 0 opens the branches: then norms alone are written, as
                with `zero_init_last=False` of timm's ResNets.
            layer_scale: start of LayerScale; None for a value that suits the depth.
        """

        norm_scale: float = 0.0
        layer_scale: float | None = None

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        layer_scale = default_layer_scale(model) if self.config.layer_scale is None else self.config.layer_scale
        for branch in model.branches:
            if branch.last_norms:
                yield from self._filled(model, branch.last_norms, self.config.norm_scale, "last norm of its branch")
            elif self.config.norm_scale != 0:
                continue
            elif branch.layer_scales:
                yield from self._filled(model, branch.layer_scales, layer_scale, "LayerScale")
            else:
                biases = [model.layers[name].bias for name in branch.last_layers]
                ends = [*branch.last_layers, *(name for name in biases if name is not None)]
                yield from self._filled(model, ends, 0.0, "last layer of its branch")

    @staticmethod
    def _filled(model: ModelStructure, names: Sequence[str], value: float, rule: str) -> Iterator[Drawn]:
        for name in names:
            yield Drawn(name, rule, torch.full(model.module.get_parameter(name).shape, value))


def default_layer_scale(model: ModelStructure) -> float:
    """Small for deep networks, larger for shallow transformers."""
    num_layers = len(model.branches) // 2  # attention and MLP
    if not model.attentions or num_layers > 24:
        return 1e-6
    return 0.1 if num_layers <= 12 else 1e-4
