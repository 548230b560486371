"""What all scores share: a private copy of the model with other weights or without norms, its features, its counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.initializers.initialize import initialize

Norm = Literal["identity", "keep"]
Reinit = str | Callable[[nn.Module], object] | Any
NORMS = ("identity", "keep")
NATIVE, NONE = "native", "none"

_NORM_CLASSES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
# timm's root-mean-square norms are classes of their own; its norms with an activation inherit from torch's.
_NORM_NAMES = ("RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d", "LayerNorm2dFp32")


def check_settings(norm: str, repeats: int) -> None:
    """Refuse settings that all scores share.

    Raises:
        ScoreError: Unknown kind of norm handling, or no repeat.
    """
    if norm not in NORMS:
        raise ScoreError(f"norm must be one of {', '.join(map(repr, NORMS))}, found {norm!r}.")
    if repeats < 1:
        raise ScoreError(f"repeats must be at least 1, found {repeats}.")


def scored_copy(
    model: nn.Module, *, norm: Norm, reinit: Reinit, seed: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A copy in evaluation mode whose weights are drawn anew; the model itself and torch's random state stay.

    Args:
        model: Any module.
        norm: "identity" takes norms out after the draw (a fused activation stays), "keep" leaves them.
        reinit: "none" for the model's own weights, "native" for a new draw as its constructor makes it, a function
            that is given the copy and changes it, or what `hf_paraminit.initialize` takes.
        seed: Of the draw.
        dtype: Of the copy's parameters.
    """
    replica = copy.deepcopy(model).eval().requires_grad_(False)
    redraw(replica, reinit, seed)
    if norm == "identity":
        remove_norms(replica)
    return replica.to(dtype)


def redraw(model: nn.Module, reinit: Reinit, seed: int) -> None:
    """Draw all weights of a model anew, in place; torch's random state is put back."""
    if isinstance(reinit, str) and reinit == NONE:
        return
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with seeded(seed, devices):
        if isinstance(reinit, str) and reinit == NATIVE:
            _redraw_natively(model)
        elif callable(reinit):
            reinit(model)
        else:
            initialize(model, reinit, seed=seed)


def remove_norms(model: nn.Module) -> None:
    """Put identities in the place of normalisation layers, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _NORM_CLASSES) or type(child).__name__ in _NORM_NAMES:
                activation = getattr(child, "act", None)
                setattr(parent, name, activation if isinstance(activation, nn.Module) else nn.Identity())


def features_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function whose output is scored, images (B, ...) -> features (B, C).

    Raises:
        ScoreError: The model has neither `forward_pooled` nor timm's `forward_features` and `forward_head`.
    """
    pooled = getattr(model, "forward_pooled", None)
    if callable(pooled):
        return pooled
    body, head = getattr(model, "forward_features", None), getattr(model, "forward_head", None)
    if callable(body) and callable(head):
        return lambda images: head(body(images), pre_logits=True)
    raise ScoreError(
        f"{type(model).__name__} has no score: it has no pooled features, neither forward_pooled(images) nor timm's "
        "forward_features(images) and forward_head(features, pre_logits=True). Pass features=f with f(model, images)."
    )


def check_features(model: nn.Module, features: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Try the features on one image.

    Raises:
        ScoreError: They cannot be computed, or are not one vector per image.
    """
    title = type(model).__name__
    try:
        with torch.no_grad(), explicit_attention():
            found = features(images[:1])
    except Exception as error:
        raise ScoreError(
            f"Cannot score {title} on images of shape {tuple(images.shape[1:])}: {error}. Pass the image size that it "
            "takes."
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ScoreError(
            f"Cannot score {title}: its features must be one vector per image, (B, C), found {shape}. Build it with "
            "pooling (global_pool), or pass features=f with f(model, images)."
        )


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of products and convolutions for one image, as torch's counter sees them."""
    with torch.no_grad(), explicit_attention(), FlopCounterMode(display=False) as counter:
        model(images[:1])
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Random draws of the block start from `seed`, on the CPU and the given GPUs; afterwards all is as before."""
    cuda = sorted(device.index for device in devices)
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed devices not set aside
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def explicit_attention() -> Iterator[None]:
    """Attention as plain products, which have forward-mode derivatives; torch's fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _redraw_natively(model: nn.Module) -> None:
    """Each layer's own reset, then the model's, which is the order of timm's constructors."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    start = getattr(model, "init_weights", None)
    if callable(start):
        start()
