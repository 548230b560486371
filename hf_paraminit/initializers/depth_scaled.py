"""Residual outputs scaled down with depth: GPT-2, BEiT and DeepNorm (arXiv 2203.00555)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.model import ModelStructure


@register_initializer("depth-scaled", summary="the model's own residual outputs, scaled down with depth")
class DepthScaled(FormulaInitializer):
    """Multiplies values that the model has; applying it twice scales twice.

    `gpt2`: the last layers of residual branches x 1 / sqrt(2N), where 2N is the number of branches. `beit`: those of
    layer l = 1, 2, ... x 1 / sqrt(2l). `deepnorm`, the encoder form: value, output and MLP matrices x (8N)^(-1/4); its
    factor (2N)^(1/4) on the shortcut belongs to the architecture and is only reported. In networks without
    attention every branch counts as a layer.
    """

    reads_values = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            rule: which of the three.
        """

        rule: Literal["gpt2", "beit", "deepnorm"] = "gpt2"

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        if self.config.rule == "deepnorm":
            num_layers = len(model.attentions)
            if num_layers:
                self.note(
                    f"DeepNorm also multiplies every shortcut by {(2 * num_layers) ** 0.25:.3g}; it is not written"
                )
                factor = (8 * num_layers) ** -0.25
                for name, rows in model.deep_rows.items():
                    yield self._scaled(model, name, factor, rows)
            return
        per_layer = 2 if model.attentions else 1  # branches: attention and MLP
        for index, branch in enumerate(model.branches):
            depth = len(model.branches) if self.config.rule == "gpt2" else 2 * (index // per_layer + 1)
            for name in branch.last_layers:
                yield self._scaled(model, name, depth**-0.5, slice(None))

    def _scaled(self, model: ModelStructure, name: str, factor: float, rows: slice) -> Drawn:
        layer = model.layers[name]
        weight = layer.seen(self.current(model, name))
        weight[rows] *= factor
        return Drawn(name, f"its own value x {factor:.3g}", layer.stored(weight))
