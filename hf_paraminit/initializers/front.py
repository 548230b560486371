"""FRONT: low frequencies of a trained network's weights, cut or padded to another size (2026)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_paraminit.initializers.donor import check_donor, load_donor
from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.resizing.spectrum import resized_spectrum
from hf_paraminit.resizing.stacks import stacks
from hf_paraminit.structure.model import ModelStructure


@register_initializer("front", summary="low frequencies of a trained model's weights, at any width and depth")
class Front(FormulaInitializer):
    """Our reading of the paper's abstract. A component of consecutive layers is stacked, (layers, out, in, ...), and
    its orthonormal cosine transform truncated or zero-padded in every dimension to the target's shape, then inverted
    and multiplied by sqrt(new size / old size).

    Layers correspond by name; the parts of fused queries, keys and values are transformed one by one; the classifier
    keeps the model's own start. Channels whose order means nothing lose their high frequencies.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings.

        Attributes:
            donor: a trained model, its state dict, a safetensors file, a folder, or hf-hub:org/repo[@revision].
        """

        donor: Any = None

        def validate(self) -> None:
            check_donor(self.donor)

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        donor = load_donor(self.config.donor)
        donated = stacks(donor)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.module.named_parameters()}
        for key, members in stacks(name for name in shapes if name not in model.classifier).items():
            sources = donated.get(key, [])
            donor_shapes = [tuple(donor[name].shape) for name in sources]
            if _are_alike(donor_shapes) and _are_alike(shapes[name] for name in members):
                yield from self._resized(model, members, [donor[name] for name in sources])
            else:  # no stack: the first layer of a stage reads another width, say
                for name in members:
                    yield from self._resized(model, [name], [donor[name]] if name in donor else [])
        for name in model.classifier:
            self.skip(name, "the classifier keeps the model's own start")

    def _resized(self, model: ModelStructure, members: Sequence[str], sources: Sequence[Tensor]) -> Iterator[Drawn]:
        """Values for the layers of a stack from those of the donor."""
        shape = tuple(model.module.get_parameter(members[0]).shape)
        num_parts = self._num_parts(model, members)
        if not sources or sources[0].dim() != len(shape) or (shape and sources[0].shape[0] % num_parts):
            for name in members:
                self.skip(name, "the donor has no such component")
            return
        for name, value in zip(
            members, resized_stack(torch.stack(list(sources)), (len(members), *shape), num_parts), strict=True
        ):
            yield Drawn(name, f"resized from {len(sources)} x {tuple(sources[0].shape)}", value.clone())

    @staticmethod
    def _num_parts(model: ModelStructure, members: Sequence[str]) -> int:
        """Parts of a fused layer, for its weight and its bias."""
        fused = dict(model.fused_parts)
        fused |= {bias: parts for name, parts in fused.items() if (bias := model.layers[name].bias) is not None}
        return fused.get(members[0], 1)


def resized_stack(stack: Tensor, shape: Sequence[int], num_parts: int) -> Tensor:
    """Resize (layers, out, ...), treating each of the equal parts along `out` as a tensor of its own."""
    part_shape = (shape[0], shape[1] // num_parts, *shape[2:]) if len(shape) > 1 else tuple(shape)
    parts = [resized_spectrum(part, part_shape) for part in (stack.chunk(num_parts, 1) if stack.dim() > 1 else [stack])]
    return torch.cat(parts, 1) if stack.dim() > 1 else parts[0]


def _are_alike(shapes: Iterable[tuple[int, ...]]) -> bool:
    return len(set(shapes)) <= 1
