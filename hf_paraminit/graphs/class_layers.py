"""The layers that emit class scores, by the model's own declaration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_paraminit.graphs.wrappers import unwrapped

# Attributes that hold the classifier in torchvision and Transformers, distilled models included.
_ATTRIBUTES = ("classifier", "head", "heads", "fc", "cls_classifier", "distillation_classifier")


def declared_class_layers(model: nn.Module) -> tuple[nn.Module, ...] | None:
    """Find the classifiers: one, two in distilled models, none in a headless model.

    Asked in turn: timm's model card (`pretrained_cfg["classifier"]`), `get_classifier()`, and the attributes that
    torchvision and Transformers use.

    Returns:
        Layers that own a weight matrix or kernel; None when the model declares nothing.
    """
    model = unwrapped(model)
    declared = list(_from_card(model)) or list(_from_method(model))
    if not declared:
        declared = [getattr(model, name) for name in _ATTRIBUTES if isinstance(getattr(model, name, None), nn.Module)]
    if not declared:
        return None
    layers = [_last_weighted_layer(module) for module in declared]
    return tuple(dict.fromkeys(layer for layer in layers if layer is not None))


def _from_card(model: nn.Module) -> Iterator[nn.Module]:
    card = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    paths = card.get("classifier") if isinstance(card, dict) else getattr(card, "classifier", None)
    modules = dict(model.named_modules())
    for path in (paths,) if isinstance(paths, str) else paths or ():
        if path in modules:
            yield modules[path]


def _from_method(model: nn.Module) -> Iterator[nn.Module]:
    method: Any = getattr(model, "get_classifier", None)
    found = method() if callable(method) else None
    for module in found if isinstance(found, (tuple, list)) else (found,):
        if isinstance(module, nn.Module):
            yield module


def _last_weighted_layer(module: nn.Module) -> nn.Module | None:
    """Return the last layer inside with a weight of two axes or more: heads may hold a norm and a dropout too."""
    weighted = [layer for layer in module.modules() if _rank(getattr(layer, "weight", None)) >= 2]
    return weighted[-1] if weighted else None


def _rank(weight: Any) -> int:
    return weight.dim() if isinstance(weight, nn.Parameter) else 0
