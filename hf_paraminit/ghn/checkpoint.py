"""Reading the state dicts of published hypernetworks: their key names, and the architecture that their shapes imply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.ghn.config import DEFAULT_CUTOFF, GHNConfig, GraphNetwork

# Official GHN-3 files hold these tables at top level, files of the public training script under the first layer.
_RELOCATED = ("centrality_embed_in.weight", "centrality_embed_out.weight", "input_dist_embed.weight")
# ppuda wrote its linear maps as 1x1 convolutions.
_ONE_BY_ONE = ("decoder.conv.0.weight", "decoder.conv.2.weight", "decoder.class_layer_predictor.1.weight")


def canonical_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring published keys and shapes to the ones of `GHN`.

    Args:
        state_dict: As read from an official GHN-3, a ppuda or a training checkpoint.

    Returns:
        The same tensors under canonical names; the two trailing unit axes of 1x1 convolutions are dropped.

    Raises:
        CheckpointError: Two keys of the file mean the same tensor, or an entry is no tensor.
    """
    canonical: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"GHN checkpoint: expected tensors by name, found {key!r} with a {type(tensor).__name__}. Pass the "
                "state dict itself, which training files keep under 'state_dict'."
            )
        name = key.removeprefix("module.")
        if name in _RELOCATED:
            name = f"gnn.0.{name}"
        if name in canonical:
            raise CheckpointError(f"GHN checkpoint: {key!r} and another key both hold {name!r}; expected one of them.")
        if name in _ONE_BY_ONE and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        canonical[name] = tensor
    return canonical


def infer_config(state_dict: Mapping[str, Tensor]) -> GHNConfig:
    """Read the architecture off the shapes of a canonical state dict, for files that carry no configuration.

    Two things cannot be seen in the tensors: the weight norm, which GHN-1 lacks, and the cut-off of virtual edges,
    which is 50 hops in all others.

    Raises:
        CheckpointError: A tensor that every hypernetwork has is missing, or sizes contradict each other.
    """
    needed = ("embed.weight", "decoder.fc.0.weight", "decoder.conv.2.weight", "decoder.class_layer_predictor.1.weight")
    if missing := [name for name in needed if name not in state_dict]:
        raise CheckpointError(
            f"This is not a checkpoint of a graph hypernetwork: it lacks {', '.join(missing)} "
            f"(it has {len(state_dict)} tensors, e.g. {', '.join(list(state_dict)[:3]) or 'none'}). "
            "Pass the file of a GHN-3, GHN-2, GHN-1 or MLP predictor, or its config."
        )
    network = _graph_network(state_dict)
    _require_matrices(state_dict, [*needed, *(["gnn.0.attn.proj_e.2.weight"] if network == "graphormer" else [])])
    dim = state_dict["embed.weight"].shape[-1]
    num_classes, max_outputs = state_dict["decoder.class_layer_predictor.1.weight"].shape[:2]
    max_inputs = state_dict["decoder.conv.2.weight"].shape[0] // max_outputs
    side = math.isqrt(state_dict["decoder.fc.0.weight"].shape[0] // (4 * dim))
    is_ghn1 = network == "gated" and "gnn.mlp_ve.fc.0.weight" not in state_dict
    sizes: dict[str, Any] = {}
    if network == "graphormer":
        sizes["num_layers"] = sum(name.startswith("gnn.") and name.endswith(".ln1.weight") for name in state_dict)
        sizes["num_heads"] = state_dict["gnn.0.attn.proj_e.2.weight"].shape[0]
    return GHNConfig(
        graph_network=network,
        hidden_dim=dim,
        max_shape=(max_outputs, max_inputs, side, side),
        num_classes=num_classes,
        weight_norm=not is_ghn1,
        virtual_edge_cutoff=1 if is_ghn1 else DEFAULT_CUTOFF,
        layernorm="ln.weight" in state_dict,
        **sizes,
    )


def _require_matrices(state_dict: Mapping[str, Tensor], names: Sequence[str]) -> None:
    shapes = {name: tuple(state_dict[name].shape) for name in names}
    if bad := {name: shape for name, shape in shapes.items() if len(shape) != 2 or 0 in shape}:
        raise CheckpointError(f"GHN checkpoint: expected matrices, found other shapes: {bad}. The file is damaged.")


def _graph_network(state_dict: Mapping[str, Tensor]) -> GraphNetwork:
    marks: dict[str, GraphNetwork] = {
        "gnn.0.attn.proj_e.2.weight": "graphormer",
        "gnn.gru.weight_ih": "gated",
        "gnn.fc.0.weight": "mlp",
    }
    for mark, network in marks.items():
        if mark in state_dict:
            return network
    raise CheckpointError(f"GHN checkpoint: no graph network found; expected one of the keys {', '.join(marks)}.")
