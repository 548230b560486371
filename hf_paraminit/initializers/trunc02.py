"""Truncated normal weights of one width, as timm and Transformers start vision transformers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.family import StandardFamily
from hf_paraminit.initializers.formula import Drawn, FormulaConfig
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import TABLE, WeightLayer
from hf_paraminit.structure.model import ModelStructure

# Standard deviation of a standard normal cut at two standard deviations; JAX divides by it.
CUT_STD = 0.87962566103423978


@register_initializer("trunc02", summary="truncated normal of standard deviation 0.02")
class Trunc02(StandardFamily):
    """W ~ N(0, std^2) within bounds, also for tables of embeddings and positions; std = 0.02 as in BERT.

    timm's `trunc_normal_` and Transformers' generic scheme cut at the absolute values -2 and 2, which at this width
    cuts nothing. JAX cuts at two standard deviations and divides by 0.8796, so that the standard deviation is kept.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            std: standard deviation.
            trunc: "abs" cuts at -2 and 2, "std" at two standard deviations.
        """

        std: float = 0.02
        trunc: Literal["abs", "std"] = "abs"

        def validate(self) -> None:
            if not 0 < self.std < 2:
                raise ValueError(f"std must be between 0 and 2, found {self.std}")

    config: Config
    rule = "truncated normal"

    def weight(self, layer: WeightLayer, model: ModelStructure) -> Tensor:
        return self._truncated(layer.shape, layer.name)

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        yield from super().draw(model, names)
        for name in model.kinds.named(TABLE):
            yield Drawn(name, self.rule, self._truncated(tuple(model.module.get_parameter(name).shape), name))

    def _truncated(self, shape: tuple[int, ...], name: str) -> Tensor:
        generator = self.generator(name)
        if self.config.trunc == "abs":
            return nn.init.trunc_normal_(torch.empty(shape), std=self.config.std, generator=generator)
        return nn.init.trunc_normal_(torch.empty(shape), generator=generator).mul_(self.config.std / CUT_STD)
