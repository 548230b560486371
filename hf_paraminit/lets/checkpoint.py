"""The published files of learngenes: their key names, both ways, and the sizes that their shapes imply."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs

PUBLISHED_HEAD_DIM = 64  # of both published nets; the number of heads cannot be seen in the tensors
_DEPTH_PARTS = {"weight": "trans_weight", "bias": "trans_bias"}
_DEPTH_KEY = re.compile(r"blocks\.(\d+)\.norm1\.trans_depth_weight\.trans_weight")
_LAYER_KEY = re.compile(r"__sm_(\d+)_norm1_weight")
_MAX_NAMED = 5


def published_name(name: str, repeat: int) -> str:
    """The published key of one of our parameters.

    Learngene tensors got the prefix `__sm_` and underscores for dots. F of a learngene layer is stored under the
    Aux-Net's layer of the same number, G of a depth block under its first layer.

    Args:
        name: as in `LeTsGenerator.state_dict()`.
        repeat: layers of the Aux-Net that share a depth block.
    """
    kind, _, rest = name.partition(".")
    if kind == "gene":
        return "__sm_" + rest.replace("patch_embed.", "patch_embed.proj.").replace(".", "_")
    if kind == "F":
        layer, _, matrix = rest.rpartition(".")
        owner = f"blocks.{layer}." if layer else {"emb": "patch_embed.", "cls": ""}[matrix]
        return f"{owner}trans_width_{matrix}.trans_weight"
    if kind == "G":
        block, _, place = rest.partition(".")
        module, _, part = place.rpartition(".")
        return f"blocks.{int(block) * repeat}.{module}.trans_depth_weight.{_DEPTH_PARTS[part]}"
    return name


def to_published(state_dict: Mapping[str, Tensor], config: LeTsConfig) -> dict[str, Tensor]:
    """Rename the parameters of a generator to the published keys; `from_published` is the exact inverse."""
    return {published_name(name, config.repeat): tensor for name, tensor in state_dict.items()}


def from_published(state_dict: Mapping[str, Tensor], names: Iterable[str], config: LeTsConfig) -> dict[str, Tensor]:
    """Rename the tensors of a published file to our parameters.

    Args:
        state_dict: as read.
        names: of our parameters.
        config: sizes.

    Raises:
        CheckpointError: keys that are missing or mean nothing.
    """
    published = {name: published_name(name, config.repeat) for name in names}
    missing = [key for key in published.values() if key not in state_dict]
    unexpected = [key for key in state_dict if key not in set(published.values())]
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:_MAX_NAMED])}{', ...' if len(keys) > _MAX_NAMED else ''})"
        for kind, keys in (("missing", missing), ("unknown", unexpected))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"LeTs checkpoint: keys do not fit a learngene of {config.depth} layers and {config.num_blocks} depth "
            f"blocks: {' and '.join(faults)}. The file may be truncated, or needs a config."
        )
    return {name: state_dict[key] for name, key in published.items()}


def is_published(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are the published ones rather than ours."""
    return any(str(key).startswith("__sm_") for key in state_dict)


def infer_config(state_dict: Mapping[str, Tensor], given: Mapping[str, Any] | None = None) -> LeTsConfig:
    """Read the sizes off the tensors of a published file.

    Images and patches are taken to be square, heads to have 64 channels, and pairs to follow the published table.

    Args:
        state_dict: under the published keys.
        given: fields of `LeTsConfig` that are known.

    Raises:
        CheckpointError: a tensor that every learngene has is missing, or sizes contradict each other.
    """
    given = dict(given or {})
    shapes = _shapes(state_dict)
    dim, in_chans, *patch = shapes["__sm_patch_embed_proj_weight"]
    layers = [int(match[1]) for key in state_dict if (match := _LAYER_KEY.fullmatch(key))]
    starts = sorted(int(match[1]) for key in state_dict if (match := _DEPTH_KEY.fullmatch(key)))
    if not layers or not starts:
        raise CheckpointError("LeTs checkpoint: it has no learngene layers or no depth transform; the file is damaged.")
    aux_dim = shapes["pos_embed"][2]
    sizes: dict[str, Any] = {
        "embed_dim": dim,
        "num_heads": _num_heads(dim, aux_dim, given),
        "depth": max(layers) + 1,
        "aux_dim": aux_dim,
        "repeat": starts[1] if len(starts) > 1 else 2,
        "mlp_ratio": shapes["__sm_0_mlp_fc1_weight"][0] / dim,
        "patch_size": tuple(patch),
        "in_chans": in_chans,
        "num_classes": shapes["__sm_head_weight"][0],
        "class_token": "cls_token" in state_dict,  # ours; the published nets have none
    }
    if "pairs" not in given:
        sizes["pairs"] = adjacent_pairs(sizes["depth"], len(starts))
    if "img_size" not in given:
        side = math.isqrt(shapes["pos_embed"][1] - sizes["class_token"])
        sizes["img_size"] = tuple(side * patch_side for patch_side in patch)
    return LeTsConfig.from_dict({**sizes, **given})


def _num_heads(dim: int, aux_dim: int, given: Mapping[str, Any]) -> int:
    if "num_heads" not in given and (dim % PUBLISHED_HEAD_DIM or aux_dim % PUBLISHED_HEAD_DIM):
        raise CheckpointError(
            f"LeTs checkpoint: widths {dim} and {aux_dim} are no multiples of {PUBLISHED_HEAD_DIM}, the published size "
            "of heads, and the tensors do not show another one. Say how many the learngene has once, as in "
            "`paraminit convert FILE --config '{\"num_heads\": 3}' --output DIR`, and use DIR."
        )
    return dim // PUBLISHED_HEAD_DIM


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that show the sizes, checked for their number of dimensions."""
    dimensions = {"__sm_patch_embed_proj_weight": 4, "pos_embed": 3, "__sm_0_mlp_fc1_weight": 2, "__sm_head_weight": 2}
    shapes = {key: tuple(state_dict[key].shape) for key in dimensions if key in state_dict}
    if bad := [key for key, count in dimensions.items() if len(shapes.get(key, ())) != count or 0 in shapes[key]]:
        raise CheckpointError(
            f"This is no published checkpoint of a learngene: {', '.join(bad)} missing or of a wrong shape. Pass the "
            "file that stage 1 of LeTs wrote, or a folder written by save_pretrained."
        )
    return shapes
