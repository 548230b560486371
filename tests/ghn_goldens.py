"""Recorded predictions of the published graph hypernetworks: how to read them, shared by several test files.

Weights are either stored or a closed formula of key and index, graphs are stored, so nothing is traced here.
"""

import functools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs.graph import ComputationalGraph, Node

GRAPHS = Path(__file__).parent / "golden" / "ghn_graph"
PREDICTIONS = Path(__file__).parent / "golden" / "ghn_predict"
CONFIGS: dict[str, dict[str, Any]] = json.loads((PREDICTIONS / "configs.json").read_text())
VARIANTS = ("__classes10", "__classes1500", "__no_class_layers")  # of a prediction, not of its graph
FOUR_KINDS = ("ghn3_tiny", "ghn2_tiny", "ghn1_tiny", "mlp_tiny")


@dataclass(frozen=True)
class Recorded:
    """One parameter of a recorded prediction."""

    name: str
    shape: tuple[int, ...]
    status: int  # 0 not predicted, 1 predicted, 2 predicted but for the random first row of a position table
    l2: float
    first8: Tensor
    spread8: Tensor


def cases(*configs: str) -> list[tuple[str, str]]:
    """Pairs (config, network) of all recorded predictions."""
    return [
        (config, path.stem) for config in configs or CONFIGS for path in sorted((PREDICTIONS / config).glob("*.npz"))
    ]


def recorded(config: str, network: str) -> Iterator[Recorded]:
    rows = np.load(PREDICTIONS / config / f"{network}.npz")
    for index, name in enumerate(rows["name"]):
        yield Recorded(
            str(name),
            tuple(int(size) for size in rows["shape"][index] if size >= 0),
            int(rows["status"][index]),
            float(rows["l2"][index]),
            torch.from_numpy(rows["first8"][index]),
            torch.from_numpy(rows["spread8"][index]),
        )


def shapes_of(config: str, network: str) -> dict[str, tuple[int, ...]]:
    return {row.name: row.shape for row in recorded(config, network)}


@functools.lru_cache(maxsize=8)
def load_hypernetwork(config: str) -> GHN:
    """The network of a recorded configuration, read like a file of the published code."""
    args, weights = CONFIGS[config]["args"], CONFIGS[config]["weights"].partition(",")[0]
    if not weights.startswith("formula"):
        return GHN.from_state_dict(load_file(PREDICTIONS / weights), args)
    skeleton = GHN.skeleton(GHNConfig.from_dict(args)).state_dict()
    return GHN.from_state_dict({key: formula(key, tuple(tensor.shape)) for key, tensor in skeleton.items()}, args)


def formula(key: str, shape: tuple[int, ...]) -> Tensor:
    """Pseudo-random values in the right range that need no storage."""
    x = (np.arange(np.prod(shape), dtype=np.uint64) + zlib.crc32(key.encode())).astype(np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    values = (2 * x.astype(np.float64) / 2**32 - 1) * np.sqrt(3)
    if len(shape) == 1:
        values = 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
    else:
        values *= 0.5 if "embed" in key else np.prod(shape[1:]) ** -0.5
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


@functools.lru_cache(maxsize=64)
def load_graph(network: str) -> ComputationalGraph:
    """The stored graph that a recorded prediction was made from."""
    for variant in VARIANTS:
        network = network.removesuffix(variant)
    path = GRAPHS / (network if network.startswith("geno") else f"tv_{network}")
    record, arrays = json.loads(path.with_suffix(".json").read_text()), np.load(path.with_suffix(".npz"))
    owned = {name for cell in record["layered_modules"] for name in cell}
    nodes = []
    for row, primitive, raw_name, is_parameter, cell in zip(
        arrays["node_shape"], record["op"], record["raw_name"], record["is_param"], arrays["cell"], strict=True
    ):
        parameters: tuple[str, ...] = (raw_name.lstrip("."),) if is_parameter else ()
        norm_bias = f"{raw_name.removesuffix('weight')}bias"
        if is_parameter and primitive in ("bn", "ln") and norm_bias in owned:
            parameters += (norm_bias,)
        shape = tuple(int(size) for size in row[1 : 1 + row[0]]) if row[0] >= 0 else None
        nodes.append(Node(primitive, shape, parameters, int(cell), raw_name))
    infos = [info for cell in record["node_info"] for info in cell]
    return ComputationalGraph(
        nodes=tuple(nodes),
        edges=torch.from_numpy(arrays["edges_1hop"].astype(np.int64)),
        distances=torch.from_numpy(arrays["dist"].astype(np.int64)),
        input_index=record["input_index"],
        class_weight_index=next((info[0] for info in infos if info[4]), None),
        class_bias_index=next((info[0] for info in infos if info[5]), None),
        num_cells=record["n_cells"],
    )
