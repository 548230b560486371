"""Key names and shapes of published files, and the architecture that shapes imply."""

import pytest
import torch
from ghn_goldens import CONFIGS, FOUR_KINDS, PREDICTIONS, load_hypernetwork
from safetensors.torch import load_file
from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.ghn.checkpoint import canonical_state_dict, infer_config
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN

RELOCATED = ("centrality_embed_in.weight", "centrality_embed_out.weight", "input_dist_embed.weight")
ODD_CONFIGS = [
    GHNConfig(hidden_dim=16, num_layers=1, num_heads=2, max_shape=(12, 20, 11, 11), num_classes=7),
    GHNConfig(hidden_dim=24, num_layers=4, num_heads=3, max_shape=(20, 12, 16, 16), num_classes=1),
    GHNConfig(hidden_dim=8, num_layers=2, num_heads=8, max_shape=(5, 5, 7, 7), num_classes=10, layernorm=False),
    GHNConfig(graph_network="gated", hidden_dim=12, max_shape=(6, 9, 11, 11), num_classes=3),
    GHNConfig(graph_network="mlp", hidden_dim=8, max_shape=(9, 6, 16, 16), num_classes=2),
    GHNConfig(
        graph_network="gated",
        hidden_dim=8,
        max_shape=(8, 8, 11, 11),
        weight_norm=False,
        virtual_edge_cutoff=1,
        layernorm=False,
    ),
]


def tensors_of(config: GHNConfig) -> dict[str, Tensor]:
    return GHN(config).state_dict()


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """A small GHN-3 under our own key names."""
    return tensors_of(GHNConfig(hidden_dim=8, num_layers=2, num_heads=4, max_shape=(8, 8, 11, 11), num_classes=10))


# Inference


@pytest.mark.parametrize("config", list(CONFIGS))
def test_inferred_config_equals_recorded(config: str) -> None:
    expected = GHNConfig.from_dict(CONFIGS[config]["args"])
    assert infer_config(GHN.skeleton(expected).state_dict()).to_dict() | sizes_unused_by(expected) == expected.to_dict()


def sizes_unused_by(config: GHNConfig) -> dict[str, int]:
    """Layers and heads cannot be read off a network that has none."""
    is_used = config.graph_network == "graphormer"
    return {} if is_used else {"num_layers": config.num_layers, "num_heads": config.num_heads}


@pytest.mark.parametrize("config", ODD_CONFIGS, ids=lambda config: f"{config.graph_network}-{config.max_shape}")
def test_odd_sizes_are_inferred_exactly(config: GHNConfig) -> None:
    state_dict = tensors_of(config)
    assert infer_config(state_dict) == config
    loaded = GHN.from_state_dict(state_dict)
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("missing", ["embed.weight", "decoder.fc.0.weight", "decoder.conv.2.weight"])
def test_missing_landmark_is_named(tensors: dict[str, Tensor], missing: str) -> None:
    del tensors[missing]
    with pytest.raises(CheckpointError, match=f"lacks {missing}"):
        infer_config(tensors)


def test_other_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of a graph hypernetwork"):
        GHN.from_state_dict(torch.nn.Linear(3, 3).state_dict())
    with pytest.raises(CheckpointError, match="not a checkpoint of a graph hypernetwork"):
        GHN.from_state_dict({})


def test_missing_graph_network_is_named(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="no graph network"):
        infer_config({name: tensor for name, tensor in tensors.items() if not name.startswith("gnn.")})


# Published names and shapes


def test_tables_are_found_at_both_published_places(tensors: dict[str, Tensor]) -> None:
    at_top_level = {name.removeprefix("gnn.0.") if name.endswith(RELOCATED) else name: t for name, t in tensors.items()}
    assert sum(name in RELOCATED for name in at_top_level) == 3
    for written in (tensors, at_top_level):
        read = canonical_state_dict(written)
        assert set(read) == set(tensors)
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_both_places_at_once_is_refused(tensors: dict[str, Tensor]) -> None:
    tensors["input_dist_embed.weight"] = tensors["gnn.0.input_dist_embed.weight"]
    with pytest.raises(CheckpointError, match="both hold"):
        canonical_state_dict(tensors)


def test_data_parallel_prefix_is_removed(tensors: dict[str, Tensor]) -> None:
    assert set(canonical_state_dict({f"module.{name}": t for name, t in tensors.items()})) == set(tensors)


def test_one_by_one_convolutions_become_matrices() -> None:
    stored = load_file(PREDICTIONS / "weights" / "ghn2_tiny.safetensors")
    as_written = {name for name, tensor in stored.items() if tensor.dim() == 4}
    assert as_written == {"decoder.conv.0.weight", "decoder.conv.2.weight", "decoder.class_layer_predictor.1.weight"}
    read = canonical_state_dict(stored)
    for name in as_written:
        assert read[name].shape == stored[name].shape[:2]
        assert torch.equal(read[name].flatten(), stored[name].flatten())


def test_a_single_class_keeps_both_axes() -> None:
    config = GHNConfig(graph_network="gated", hidden_dim=8, max_shape=(8, 8, 11, 11), num_classes=1)
    state_dict = tensors_of(config)
    name = "decoder.class_layer_predictor.1.weight"
    assert state_dict[name].shape == (1, 8)
    written = {**state_dict, name: state_dict[name][..., None, None]}
    assert canonical_state_dict(written)[name].shape == (1, 8)
    assert infer_config(canonical_state_dict(written)) == config


@pytest.mark.parametrize("config", FOUR_KINDS)
def test_key_names_are_the_published_ones(config: str) -> None:
    stored = load_file(PREDICTIONS / CONFIGS[config]["weights"])
    assert set(load_hypernetwork(config).state_dict()) == set(stored)


# Refusals: any damaged entry


def damage(tensor: Tensor, kind: str) -> object:
    match kind:
        case "scalar":
            return torch.tensor(1.0)
        case "longer":
            return torch.cat([tensor, tensor])
        case "empty":
            return torch.zeros(0)
        case "integers":
            return tensor.long()
        case "complex":
            return tensor.to(torch.complex64)
        case "NaN":
            return torch.full_like(tensor, torch.nan)
        case "infinity":
            return torch.full_like(tensor, torch.inf)
    return None


@pytest.mark.parametrize("kind", ["scalar", "longer", "empty", "integers", "complex", "NaN", "infinity", "no tensor"])
def test_any_damaged_tensor_is_refused(tensors: dict[str, Tensor], kind: str) -> None:
    for name, tensor in tensors.items():
        with pytest.raises(CheckpointError, match=r"GHN|tensors do not fit"):
            GHN.from_state_dict({**tensors, name: damage(tensor, kind)})  # type: ignore[dict-item]


def test_any_missing_or_unexpected_tensor_is_refused(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        with pytest.raises(CheckpointError):
            GHN.from_state_dict({key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match="extra"):
        GHN.from_state_dict({**tensors, "extra.weight": torch.zeros(2)})


def test_tensors_that_contradict_the_config_are_named(tensors: dict[str, Tensor]) -> None:
    config = {**infer_config(tensors).to_dict(), "num_classes": 11}
    with pytest.raises(CheckpointError, match=r"bias_class\.1\.weight"):
        GHN.from_state_dict(tensors, config)


def test_16_bit_tensors_become_float32(tensors: dict[str, Tensor]) -> None:
    loaded = GHN.from_state_dict({name: tensor.bfloat16() for name, tensor in tensors.items()})
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].bfloat16().float())
