"""Configurations: what is read, what is refused."""

import json
from typing import Any

import pytest
from ghn_goldens import CONFIGS

from hf_paraminit.errors import CheckpointError
from hf_paraminit.ghn.config import PUBLISHED_CONFIGS, GHNConfig
from hf_paraminit.ghn.model import GHN


@pytest.mark.parametrize(
    ("variant", "num_parameters"),
    [("tm8", 6_906_632), ("sm8", 35_810_368), ("lm8", 214_668_960), ("xlm16", 654_365_184)],
)
def test_published_sizes(variant: str, num_parameters: int) -> None:
    skeleton = GHN.skeleton(PUBLISHED_CONFIGS[variant])
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == num_parameters
    assert skeleton.paraminit_type == "ghn3"


@pytest.mark.parametrize("config", list(CONFIGS))
def test_round_trip_through_json(config: str) -> None:
    read = GHNConfig.from_dict(CONFIGS[config]["args"])
    assert GHNConfig.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize(
    ("config", "network", "weight_norm", "cutoff", "layernorm", "initializer"),
    [
        ("ghn3_tiny", "graphormer", True, 50, True, "ghn3"),
        ("ghn2_tiny", "gated", True, 50, True, "ghn2"),
        ("ghn2_tiny_in_ghn3", "gated", True, 50, True, "ghn2"),
        ("ghn1_tiny", "gated", False, 1, False, "ghn1"),
        ("mlp_tiny", "mlp", True, 50, True, "ghn-mlp"),
    ],
)
def test_published_arguments(
    config: str, network: str, weight_norm: bool, cutoff: int, layernorm: bool, initializer: str
) -> None:
    read = GHNConfig.from_dict(CONFIGS[config]["args"])
    assert read.graph_network == network
    assert (read.weight_norm, read.virtual_edge_cutoff, read.layernorm) == (weight_norm, cutoff, layernorm)
    assert GHN.skeleton(read).paraminit_type == initializer


def test_loader_keys_of_the_published_code_do_not_matter() -> None:
    args = CONFIGS["ghn3_tiny"]["args"]
    assert GHNConfig.from_dict({**args, "is_ghn2": False, "pretrained": True}) == GHNConfig.from_dict(args)
    as_ghn2 = GHNConfig.from_dict({**args, "is_ghn2": True})
    assert as_ghn2.graph_network == "gated"


def test_lists_become_tuples_so_that_configs_compare_equal() -> None:
    assert GHNConfig(max_shape=[8, 8, 11, 11]) == GHNConfig(max_shape=(8, 8, 11, 11))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 30}, "multiple of 4"),
        ({"hidden_dim": 36, "num_heads": 8}, "not divisible by num_heads"),
        ({"hidden_dim": 0}, "positive integers"),
        ({"hidden_dim": 64.0}, "positive integers"),
        ({"hidden_dim": "64"}, "positive integers"),
        ({"num_layers": True}, "positive integers"),
        ({"num_classes": -1}, "positive integers"),
        ({"max_shape": (8, 8, 11)}, "max_shape"),
        ({"max_shape": (8, 8, 11, 13)}, "equal sides"),
        ({"max_shape": (8, 0, 11, 11)}, "positive integers"),
        ({"max_shape": 8}, "max_shape"),
        ({"max_shape": "8888"}, "max_shape"),
        ({"graph_network": "gat"}, "graphormer"),
        ({"weight_norm": "no"}, "true or false"),
        ({"layernorm": 1}, "true or false"),
        ({"virtual_edge_cutoff": 0}, "positive integers"),
        ({"virtual_edge_cutoff": 255}, "at most 254"),
        ({"hidden_dim": 2**40}, "at most 16384"),
        ({"max_shape": (8, 8, 2**20, 2**20)}, "at most 16384"),
        ({"num_layers": 100_000}, "at most 256"),
        ({"hiden_dim": 64}, "unknown keys"),
    ],
)
def test_own_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GHNConfig.from_dict({**GHNConfig().to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "mlp"}, "never released"),
        ({"hypernet": "gat"}, "hypernet"),
        ({"max_shape": None}, "max_shape"),
        ({"heads": 5}, "num_heads"),
        ({"ve": True, "hid": 33}, "multiple of 4"),
    ],
)
def test_published_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GHNConfig.from_dict({**CONFIGS["ghn3_tiny"]["args"], **changes})


@pytest.mark.parametrize("key", ["max_shape", "num_classes", "heads"])
def test_missing_published_argument_is_named(key: str) -> None:
    args = dict(CONFIGS["ghn3_tiny"]["args"])
    del args[key]
    with pytest.raises(CheckpointError, match=key):
        GHNConfig.from_dict(args)
