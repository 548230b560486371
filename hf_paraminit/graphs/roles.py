"""Which primitive stands for a parameter, and why the others keep the model's own start."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hf_paraminit.graphs.primitives import is_instance_of

_NORM_WEIGHT_NAMES = ("weight", "gamma", "scale")
_NORM_BIAS_NAMES = ("bias", "beta")
_MAX_PREFIX_ROWS = 2  # a class token and a distillation token, unless the model declares its number

KEPT_VECTOR = "a bare vector or scalar (layer scale, token, gain, temperature): the model's own start is kept"
KEPT_RELATIVE = "a relative position table: no decoder makes one"
KEPT_GRID = "a position table whose rows are no square grid behind a few tokens"
KEPT_ZERO_START = "starts its residual branch at zero on purpose"
KEPT_NORM_SHAPE = "a norm layer's parameter that is no weight and bias of one value per channel"
KEPT_UNUSED = "the output does not depend on it"
KEPT_TENSOR = "neither a matrix in a product nor a convolution kernel"


@dataclass(frozen=True, slots=True)
class Role:
    """What a parameter is.

    Attributes:
        primitive: Type of its node, None without a node of its own.
        kept_reason: Why it has no node; empty for a norm's bias, which shares the node of the weight.
    """

    primitive: str | None
    kept_reason: str = ""


@dataclass(frozen=True, slots=True)
class Uses:
    """How a parameter enters the forward pass.

    Attributes:
        in_product: As a factor of a matrix product.
        in_convolution: As the kernel of a convolution.
    """

    in_product: bool
    in_convolution: bool


def parameter_role(owner: nn.Module, leaf_name: str, tensor: Tensor, uses: Uses, num_prefix_tokens: int | None) -> Role:
    """Type a parameter: by the classes its owner descends from, then by its shape and how it is used.

    Args:
        owner: Module that owns it.
        leaf_name: Its name there.
        tensor: The parameter.
        uses: How the forward pass uses it.
        num_prefix_tokens: Rows of position tables that stand for tokens, None when the model does not say.
    """
    if isinstance(owner, (_ConvNd, nn.Linear, nn.Bilinear)) or is_instance_of(owner, "transformers", "Conv1D"):
        if leaf_name == "weight":
            return Role(_kernel_primitive(owner, tensor))
        if leaf_name == "bias":
            return Role("bias")
    elif isinstance(owner, (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)):
        if tensor.dim() == 2:
            return Role("conv")
        if tensor.dim() == 1:
            return Role("bias")
    elif isinstance(owner, nn.Embedding):
        return Role("pos_enc")
    elif "norm" in type(owner).__name__.lower() or isinstance(owner, (_NormBase, nn.GroupNorm)):
        return _norm_role(owner, leaf_name, tensor)
    return _structural_role(owner, leaf_name, tensor, uses, num_prefix_tokens)


def norm_bias(owner: nn.Module) -> nn.Parameter | None:
    """Return the bias that shares the node of a norm layer's weight."""
    for name in _NORM_BIAS_NAMES:
        bias = owner._parameters.get(name)
        if bias is not None and bias.dim() == 1:
            return bias
    return None


def is_channels_last_grid(shape: tuple[int, ...]) -> bool:
    """Whether a position table is a square grid whose channels come last, (1, g, g, width)."""
    return len(shape) == 4 and shape[0] == 1 and shape[1] == shape[2] != shape[3]


def _norm_role(owner: nn.Module, leaf_name: str, tensor: Tensor) -> Role:
    if is_instance_of(owner, "timm", "GlobalResponseNorm") or "GRN" in type(owner).__name__:
        return Role(None, KEPT_ZERO_START)
    if tensor.dim() != 1:
        return Role(None, KEPT_NORM_SHAPE)
    if leaf_name in _NORM_WEIGHT_NAMES:
        return Role("bn" if isinstance(owner, _NormBase) or "running_mean" in owner._buffers else "ln")
    if leaf_name in _NORM_BIAS_NAMES:
        has_weight = any(owner._parameters.get(name) is not None for name in _NORM_WEIGHT_NAMES)
        return Role(None) if has_weight else Role("bias")
    return Role(None, KEPT_NORM_SHAPE)


def _structural_role(
    owner: nn.Module, leaf_name: str, tensor: Tensor, uses: Uses, num_prefix_tokens: int | None
) -> Role:
    shape = tuple(tensor.shape)
    if sum(extent > 1 for extent in shape) < 2:
        is_bias = "bias" in leaf_name and len(shape) == 1
        is_layer = any(other is not None and other.dim() >= 2 for other in owner._parameters.values())
        return Role("bias") if is_bias and is_layer else Role(None, KEPT_VECTOR)
    if "rel" in leaf_name or "bias" in leaf_name:
        return Role(None, KEPT_RELATIVE)
    if "pos" in leaf_name or "Pos" in type(owner).__name__:
        return Role("pos_enc") if _is_position_grid(shape, num_prefix_tokens) else Role(None, KEPT_GRID)
    if (uses.in_product and len(shape) == 2) or (uses.in_convolution and len(shape) >= 3):
        return Role(_kernel_primitive(owner, tensor))
    return Role(None, KEPT_TENSOR)


def _kernel_primitive(owner: nn.Module, tensor: Tensor) -> str:
    is_depthwise = tensor.dim() > 2 and tensor.shape[0] > 1 == tensor.shape[1]
    num_groups = getattr(owner, "groups", None if not is_depthwise else tensor.shape[0])
    if isinstance(num_groups, int) and num_groups > 1 and tensor.dim() > 2:
        dilation = getattr(owner, "dilation", 1)
        return "dil_conv" if min(dilation if isinstance(dilation, tuple) else (dilation,)) > 1 else "sep_conv"
    return "conv"


def _is_position_grid(shape: tuple[int, ...], num_prefix_tokens: int | None) -> bool:
    """Whether a decoder fits: (rows, width), (1, tokens + g * g, width), (1, width, g, g), or (1, g, g, width)."""
    if len(shape) == 2:
        return True
    if len(shape) == 4:
        return (shape[0] == 1 and shape[2] == shape[3]) or is_channels_last_grid(shape)
    if len(shape) != 3 or shape[0] != 1:
        return False
    num_extra = shape[1] - math.isqrt(shape[1]) ** 2
    return num_extra <= max(_MAX_PREFIX_ROWS, num_prefix_tokens or 0)
