"""The vocabulary of node types, and which layer or autograd operation is which.

The order of the vocabulary is baked into every GHN-2 and GHN-3 checkpoint (rows of the `embed` table).
"""

from __future__ import annotations

from torch import nn

PRIMITIVES: tuple[str, ...] = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
PRIMITIVE_INDEX: dict[str, int] = {name: index for index, name in enumerate(PRIMITIVES)}

# Name of an autograd operation, cut before "Backward" -> primitive.
OPERATION_PRIMITIVES: dict[str, str] = {
    "input": "input",
    "Mean": "glob_avg",
    "AdaptiveAvgPool2D": "glob_avg",
    "MaxPool2DWithIndices": "max_pool",
    "AvgPool2D": "avg_pool",
    "Softmax": "msa",
    "Mul": "cse",
    "Add": "sum",
    "Cat": "concat",
}
POOLING_PRIMITIVES = frozenset({"max_pool", "avg_pool"})
NORM_PRIMITIVES = frozenset({"bn", "ln"})

# Layer class -> kind; "weighted" layers split into conv, sep_conv, dil_conv and bias.
_LAYER_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv2d, "weighted"),
    (nn.Linear, "weighted"),
    (nn.MultiheadAttention, "weighted"),
    (nn.BatchNorm2d, "bn"),
    (nn.LayerNorm, "ln"),
    (nn.Embedding, "pos_enc"),
)
_ATTENTION_PARAMETERS = frozenset(
    {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v"}
)
# Layers of packages that need not be installed: (package, class name) -> kind.
_NAMED_LAYER_KINDS: tuple[tuple[tuple[str, str], str], ...] = (
    (("transformers", "Conv1D"), "weighted"),
    (("torchvision", "Encoder"), "pos_enc"),
    (("hf_paraminit", "PosEnc"), "pos_enc"),
)


def operation_text(name: str) -> str:
    """Return the part of an autograd type name before "Backward"."""
    return name.split("Backward", 1)[0]


def is_instance_of(module: object, package: str, class_name: str) -> bool:
    """Return whether a base class of `module` has this name and top-level package, without importing the package."""
    return any(
        base.__name__ == class_name and base.__module__.partition(".")[0] == package for base in type(module).__mro__
    )


def parameter_primitive(owner: nn.Module, parameter_name: str) -> str | None:
    """Type a parameter by the layer that owns it, base classes included.

    Args:
        owner: The layer.
        parameter_name: Full path of the parameter; a weighted layer's parameter is a bias when it contains "bias".

    Returns:
        The primitive, or None for layers outside the vocabulary, for the bias of a norm layer (predicted together with
        its weight), and for parameters that a subclass added to a vocabulary layer (the gain of a `ScaledStdConv2d`).
    """
    base, kind = _layer_kind(owner)
    leaf_name = parameter_name.rpartition(".")[2]
    if kind is None or (type(owner) is not base and _is_added_by_subclass(leaf_name, kind)):
        return None
    if kind in NORM_PRIMITIVES:
        return None if leaf_name == "bias" else kind
    if kind != "weighted":
        return kind
    if "bias" in parameter_name:
        return "bias"
    if isinstance(owner, nn.Conv2d) and owner.groups > 1:
        return "dil_conv" if min(owner.dilation) > 1 else "sep_conv"
    return "conv"


def _layer_kind(owner: nn.Module) -> tuple[type | None, str | None]:
    for base, kind in _LAYER_KINDS:
        if isinstance(owner, base):
            return base, kind
    for (package, class_name), kind in _NAMED_LAYER_KINDS:
        if is_instance_of(owner, package, class_name):
            return type(owner), kind
    return None, None


def _is_added_by_subclass(leaf_name: str, kind: str) -> bool:
    return leaf_name not in ("weight", "bias") and not (kind == "weighted" and leaf_name in _ATTENTION_PARAMETERS)
