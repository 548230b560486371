"""The sample size a model is traced at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from hf_paraminit.errors import TracingError
from hf_paraminit.graphs.primitives import is_instance_of
from hf_paraminit.graphs.wrappers import unwrapped

DEFAULT_SIDE = 224
INCEPTION_SIDE = 299
DEFAULT_CHANNELS = 3


def resolve_input_size(model: nn.Module, input_size: Any = None) -> tuple[int, int, int]:
    """Find the (channels, height, width) to trace a model at.

    An explicit size wins, then the model's `expected_input_sz`, then what timm models and the configs of Transformers
    models say, then 299 pixels for torchvision's Inception v3 and 224 for everything else.

    Args:
        model: The model.
        input_size: Side of a square image in pixels, (channels, height, width), or None.

    Raises:
        TracingError: When a given or declared size is neither a positive integer nor three of them.
    """
    model = unwrapped(model)
    if input_size is None:
        input_size = getattr(model, "expected_input_sz", None)
    if input_size is None:
        side = INCEPTION_SIDE if is_instance_of(model, "torchvision", "Inception3") else DEFAULT_SIDE
        height, width = _declared_image_size(model) or (side, side)
        return _num_channels(model), height, width
    if isinstance(input_size, Integral):
        input_size = (_num_channels(model), input_size, input_size)
    is_triple = isinstance(input_size, Sequence) and len(input_size) == 3
    if not is_triple or not all(isinstance(extent, Integral) and int(extent) > 0 for extent in input_size):
        raise TracingError(
            f"Cannot trace {type(model).__name__} at input size {input_size!r}: expected a side in pixels, as 224, or "
            "positive (channels, height, width), as (3, 224, 224)."
        )
    channels, height, width = input_size
    return int(channels), int(height), int(width)


def _declared_image_size(model: nn.Module) -> tuple[int, int] | None:
    """Return (height, width) from the model's traits, patch embedding, card or config, None for other models."""
    traits, patch_embed = getattr(model, "_traits", None), getattr(model, "patch_embed", None)
    candidates = (
        traits.get("img_size") if isinstance(traits, Mapping) else None,
        getattr(patch_embed, "img_size", None),
        _timm_card(model).get("input_size"),
        getattr(_vision_config(model), "image_size", None),
    )
    return next((pair for size in candidates if (pair := _height_and_width(size)) is not None), None)


def _height_and_width(size: Any) -> tuple[int, int] | None:
    """Read a declared size: a side, (..., height, width), or the two by name; None for anything else."""
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, Integral):
        size = (size, size)
    if not isinstance(size, Sequence) or len(size) < 2:
        return None
    height, width = size[-2:]
    is_pair = all(isinstance(extent, Integral) and int(extent) > 0 for extent in (height, width))
    return (int(height), int(width)) if is_pair else None


def _num_channels(model: nn.Module) -> int:
    """Return the declared number of input channels, else that of a convolution that could be the first."""
    declared = getattr(model, "in_chans", None) or (_timm_card(model).get("input_size") or (None,))[0]
    declared = declared or getattr(_vision_config(model), "num_channels", None)
    if isinstance(declared, Integral) and int(declared) > 0:
        return int(declared)
    found = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return DEFAULT_CHANNELS if DEFAULT_CHANNELS in found or not found else found[0]


def _timm_card(model: nn.Module) -> dict[str, Any]:
    card = getattr(model, "pretrained_cfg", None)
    return card if isinstance(card, dict) else {}


def _vision_config(model: nn.Module) -> Any:
    """Return the part of a Transformers config that describes the image encoder."""
    config = getattr(model, "config", None)
    return getattr(config, "vision_config", config)
