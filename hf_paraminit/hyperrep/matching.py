"""Which layers of a target network a hyper-representation of another network can give values to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from hf_paraminit.hyperrep.tokens import TokenLayer, TokenLayout


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Where the values of a target's parameters come from.

    Attributes:
        sources: Parameter of the target -> parameter of the zoo's architecture.
        reasons: Parameter of the target that has no source -> why.
        differences: How the target departs from the zoo's architecture, classifier aside; empty when it does not.
    """

    sources: Mapping[str, str]
    reasons: Mapping[str, str]
    differences: tuple[str, ...]

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target's part of a sampled network, its layers by the target's names."""
        return {name: weights[source] for name, source in self.sources.items()}


def match_layouts(zoo: TokenLayout, target: TokenLayout) -> Matching:
    """Match by name, layer by layer; a classifier for other classes has no source."""
    known = {layer.names: layer for layer in zoo.layers}
    sources: dict[str, str] = {}
    reasons = dict(target.skipped)
    for layer in target.layers:
        if (own := known.get(layer.names)) is not None and own.shapes == layer.shapes:
            sources |= {name: name for name in layer.names}
        else:
            reason = "the classifier is for other classes" if layer.is_head else "the zoo has no such layer"
            reasons |= dict.fromkeys(layer.names, reason)
    differences = tuple(zoo.differences(target, with_head=False))
    return Matching(sources=sources, reasons=reasons, differences=differences)


def match_layers(zoo: TokenLayout, target: TokenLayout) -> Matching:
    """Give each layer of another architecture the zoo's layer of the same kind and shapes that is nearest in depth.

    Classifiers are left out. A layer of the zoo may serve several times.
    """
    zoo_body, target_body = _body(zoo), _body(target)
    sources: dict[str, str] = {}
    reasons = dict(target.skipped)
    for layer in target.layers:
        if layer.is_head:
            reasons |= dict.fromkeys(layer.names, "classifiers are not taken from another architecture")
            continue
        depth = _depth(layer, target_body)
        fitting = [own for own in zoo_body if own.kind == layer.kind and own.shapes == layer.shapes]
        if not fitting:
            reasons |= dict.fromkeys(layer.names, "no layer of this kind and shape in the zoo's architecture")
            continue
        nearest = min(fitting, key=lambda own: abs(_depth(own, zoo_body) - depth))
        sources |= dict(zip(layer.names, nearest.names, strict=True))
    return Matching(sources=sources, reasons=reasons, differences=tuple(zoo.differences(target, with_head=False)))


def _body(layout: TokenLayout) -> list[TokenLayer]:
    return [layer for layer in layout.layers if not layer.is_head]


def _depth(layer: TokenLayer, body: Iterable[TokenLayer]) -> float:
    """Place of a layer, 0 for the first and 1 for the last of the body."""
    indices = [own.index for own in body]
    return indices.index(layer.index) / max(1, len(indices) - 1)
