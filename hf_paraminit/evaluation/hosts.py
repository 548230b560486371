"""What the comparison takes from timm: models by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from hf_paraminit.errors import ParamInitError
from hf_paraminit.evaluation.nets import Net
from hf_paraminit.initializers.suggest import did_you_mean
from hf_paraminit.training.stored_images import HOST_ERRORS


def require_known(net: Net) -> None:
    """Refuse a model name that timm does not have, before anything is computed."""
    name = net.architecture
    if isinstance(name, str) and ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise ParamInitError(
            f"timm {timm.__version__} has no model {name!r}.{did_you_mean(name, timm.list_models())} "
            "timm.list_models('*') lists all names."
        )


def build_network(net: Net, *, num_classes: int, in_chans: int, img_size: int, strong: bool = False) -> nn.Module:
    """Build a network as its host initialises it, from torch's random state.

    Args:
        net: What to build.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the images.
        img_size: Side of the images; told to models that ask for it.
        strong: Build the strongest trivial variant instead of the default.

    Raises:
        ParamInitError: The host cannot build it so.
    """
    settings = {"num_classes": num_classes, "in_chans": in_chans, **net.settings}
    if strong:
        settings.update(net.strong_settings)
    with _host_errors(f"could not build {net.title}"):
        constructor = _constructor(net.architecture)
        model = _told_image_size(constructor, img_size, settings)
        # Read by `hf_paraminit.trace`: timm's records say 224 pixels, whatever these images are.
        model.expected_input_sz = (in_chans, img_size, img_size)  # type: ignore[assignment]
    if strong and net.has_strong_position:
        _write_sincos_position(model)
    return model


@torch.no_grad()
def require_runs(model: nn.Module, net: Net, images: Tensor, num_classes: int) -> None:
    """Refuse a network that does not turn images (B, C, H, W) into scores (B, num_classes).

    Raises:
        ParamInitError: It does not; images may be too small for it.
    """
    with _host_errors(f"could not run {net.title} on images {tuple(images.shape[1:])} (another image size may do)"):
        scores = model.eval()(images)
    if not isinstance(scores, Tensor) or scores.shape != (len(images), num_classes):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ParamInitError(
            f"The comparison needs class scores of shape {(len(images), num_classes)}; {net.title} gives {found}."
        )


def _constructor(architecture: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if not isinstance(architecture, str):
        return architecture
    module, separator, name = architecture.partition(":")
    if separator:
        return getattr(importlib.import_module(module), name)
    return lambda **settings: timm.create_model(architecture, **settings)


def _told_image_size(constructor: Callable[..., nn.Module], img_size: int, settings: dict[str, Any]) -> nn.Module:
    """Only some models take `img_size`, and no record says which."""
    if "img_size" in settings:
        return constructor(**settings)
    state = torch.get_rng_state()
    try:
        return constructor(img_size=img_size, **settings)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    torch.set_rng_state(state)
    return constructor(**settings)


@torch.no_grad()
def _write_sincos_position(model: nn.Module) -> None:
    """Replace the position table by the 2-D sine-cosine code (MoCo v3, arXiv 2104.02057); extra tokens get none."""
    table = model.pos_embed
    assert isinstance(table, nn.Parameter)
    grid = model.patch_embed.grid_size  # type: ignore[union-attr]
    code = build_sincos2d_pos_embed(list(grid), dim=table.shape[-1], dtype=table.dtype)  # type: ignore[arg-type]
    table.zero_()
    table[0, -len(code) :] = code


@contextmanager
def _host_errors(attempt: str) -> Iterator[None]:
    try:
        yield
    except ParamInitError:
        raise
    except HOST_ERRORS as error:
        raise ParamInitError(f"The comparison {attempt}: {error or type(error).__name__}") from error
