"""Weight selection: evenly spaced slices of a larger trained network of the same family (arXiv 2311.18823)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hf_paraminit.initializers.donor import check_donor, load_donor
from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.resizing.selection import selected, whole_heads, within_blocks
from hf_paraminit.resizing.spectrum import resized_spectrum
from hf_paraminit.structure.model import ModelStructure


@register_initializer("weight-selection", summary="evenly spaced slices of a larger trained model", paper="2311.18823")
class WeightSelection(FormulaInitializer):
    """Layers correspond by name: the first layers of the donor, or of each of its stages, give theirs.

    Of every dimension, m of M places are kept: every M/m-th, or round(linspace(0, M - 1, m)); fused queries, keys and
    values are cut in each of their blocks. Values are neither rescaled nor noised. The classifier keeps the model's own
    start. Beyond the paper, a tensor that is larger than the donor's is enlarged in the frequency domain, as `front`
    does.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            donor: a trained model, its state dict, a safetensors file, a folder, or hf-hub:org/repo[@revision].
            heads: which channels of attention to keep: "spread" evenly over each block; "whole" heads; or the same
                places "within" all heads, when donor and target have the same number of heads.
            parity: do as the published code does: fused queries, keys and values are cut as one dimension. Where the
                sizes do not divide each other, queries and keys then keep different places and no longer match.
        """

        donor: Any = None
        heads: Literal["spread", "whole", "within"] = "spread"
        parity: bool = False

        def validate(self) -> None:
            check_donor(self.donor)
            if self.parity and self.heads != "spread":
                raise ValueError(f"parity=True cuts as published, so it does not go with heads={self.heads!r}")

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        donor = load_donor(self.config.donor)
        places = {} if self.config.parity else self._attention_places(model, donor)
        for name in names:
            shape = tuple(model.module.get_parameter(name).shape)
            if name in model.classifier:
                self.skip(name, "the classifier keeps the model's own start")
            elif name not in donor:
                self.skip(name, "the donor has no parameter of this name; front also adds layers")
            elif donor[name].dim() != len(shape):
                self.skip(name, "the donor's parameter has another number of dimensions")
            elif all(new <= old for new, old in zip(shape, donor[name].shape, strict=True)):
                yield Drawn(
                    name, f"selected from {tuple(donor[name].shape)}", selected(donor[name], shape, places.get(name))
                )
            else:
                yield Drawn(name, f"enlarged from {tuple(donor[name].shape)}", resized_spectrum(donor[name], shape))

    def _attention_places(self, model: ModelStructure, donor: dict[str, Tensor]) -> dict[str, dict[int, Tensor]]:
        """Parameter -> dimension -> places to keep, where attention decides them."""
        places: dict[str, dict[int, Tensor]] = {}
        for attention in model.attentions:
            for projection in (attention.query, attention.key, attention.value):
                layer = projection.layer
                if layer.name not in donor or layer.is_transposed:
                    continue
                old, new = donor[layer.name].shape[0], layer.shape[0]
                num_blocks = model.fused_parts.get(layer.name, 1)
                if old < new:
                    continue
                rows = self._rows(old, new, num_blocks, attention.head_dim)
                for name in (layer.name, layer.bias):
                    if name is not None:
                        places[name] = {0: rows}
            output = attention.output
            if output is not None and output.name in donor and not output.is_transposed:
                old, new = donor[output.name].shape[1], output.shape[1]
                if old >= new:
                    places[output.name] = {1: self._rows(old, new, 1, attention.head_dim)}
        return places

    def _rows(self, old: int, new: int, num_blocks: int, head_dim: int) -> Tensor:
        if self.config.heads == "whole" and (old // num_blocks) % head_dim == 0:
            return whole_heads(old, new, head_dim, num_blocks)
        num_heads = new // num_blocks // head_dim
        if self.config.heads == "within" and (old // num_blocks) % num_heads == 0:
            return within_blocks(old, new, num_blocks * num_heads)
        return within_blocks(old, new, num_blocks)
