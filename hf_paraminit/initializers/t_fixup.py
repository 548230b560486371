"""T-Fixup: transformers that train without norms and warm-up (Huang et al., ICML 2020)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_paraminit.initializers.formula import Drawn, FormulaConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.xavier import Xavier
from hf_paraminit.structure.layers import TABLE
from hf_paraminit.structure.model import ModelStructure


@register_initializer("t-fixup", summary="Xavier, with values, outputs and MLPs scaled down by depth")
class TFixup(Xavier):
    """Xavier for all matrices and N(0, 1/d) for tables; with N layers then tables x (9N)^(-1/4), and value, output and
    both MLP matrices x 0.67 N^(-1/4) in encoders, x (9N)^(-1/4) in decoders.

    N counts the attention layers. Constants are from general knowledge of the paper, not compared with its code.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            kind: which of the two factors applies.
        """

        kind: Literal["encoder", "decoder"] = "encoder"

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        if not model.attentions:
            self.note("the model has no attention")
            return
        table_factor = (9 * len(model.attentions)) ** -0.25
        factor = 0.67 * len(model.attentions) ** -0.25 if self.config.kind == "encoder" else table_factor
        for name, rule, value in super().draw(model, names):
            rows = model.deep_rows.get(name)
            if rows is None:
                yield Drawn(name, rule, value)
            else:
                layer = model.layers[name]
                weight = layer.seen(value)
                weight[rows] *= factor
                yield Drawn(name, f"Xavier x {factor:.3g}", layer.stored(weight))
        for name in model.kinds.named(TABLE):
            shape = tuple(model.module.get_parameter(name).shape)
            scale = table_factor * shape[-1] ** -0.5
            yield Drawn(name, "table", scale * self.normal(shape, name))
