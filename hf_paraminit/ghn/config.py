"""What defines a graph hypernetwork, and the published sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_paraminit.errors import CheckpointError

GraphNetwork = Literal["graphormer", "gated", "mlp"]
Decoded = Literal["values", "scales"]
DEFAULT_CUTOFF = 50  # hops; both papers
MAX_CUTOFF = 254  # hops; the published table of path lengths has 257 rows, of which two stay unused
# Far beyond every published size; a damaged config must not ask for endless layers or overflow a tensor's size.
MAX_SIZE, MAX_LAYERS, MAX_CLASSES = 2**14, 2**8, 2**20
FACTOR_LENGTH = 2048 * 16  # rows of each factor of a low-rank decoder (LoGAH): 2048 channels of 16-pixel kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class GHNConfig:
    """Architecture of a graph hypernetwork. All values are plain JSON.

    Attributes:
        graph_network: "graphormer" (GHN-3), "gated" (GHN-1 and GHN-2) or "mlp" (the baseline that ignores edges).
        hidden_dim: Width d of the node states.
        num_layers: Graphormer layers; unused by the other two.
        num_heads: Attention heads of each Graphormer layer; unused by the other two.
        max_shape: (output channels, input channels, height, width) of the largest decoded block. Height equals width.
        num_classes: Rows of the decoded classifier; also an entry of the shape-code table.
        weight_norm: Rescale predicted tensors to fan-in variance and squash 1-D ones.
        virtual_edge_cutoff: Longest path that counts as an edge, in hops. 1 means no virtual edges (GHN-1).
        layernorm: Normalise the node states before decoding.
        low_rank: Rank r of the two factors that kernels and matrices are the product of, as LoGAH decodes them; no
            block is then smaller than its target, so nothing is tiled. LoGAH takes about half of `hidden_dim`. None for
            the published decoder, which emits full blocks and tiles them.
        decodes: "values", as published, or "scales": one factor per tensor, for seeded values (`ghn/noise.py`).
    """

    graph_network: GraphNetwork = "graphormer"
    hidden_dim: int = 64
    num_layers: int = 3
    num_heads: int = 8
    max_shape: tuple[int, int, int, int] = (64, 64, 16, 16)
    num_classes: int = 1000
    weight_norm: bool = True
    virtual_edge_cutoff: int = DEFAULT_CUTOFF
    layernorm: bool = True
    low_rank: int | None = None
    decodes: Decoded = "values"

    def __post_init__(self) -> None:
        if not isinstance(self.max_shape, (list, tuple)):
            raise CheckpointError(f"GHN config: max_shape={self.max_shape!r}; expected four integers.")
        object.__setattr__(self, "max_shape", tuple(self.max_shape))
        if self.graph_network not in ("graphormer", "gated", "mlp"):
            raise CheckpointError(
                f"GHN config: graph_network={self.graph_network!r}; expected 'graphormer', 'gated' or 'mlp'."
            )
        if self.decodes not in ("values", "scales"):
            raise CheckpointError(f"GHN config: decodes={self.decodes!r}; expected 'values' or 'scales'.")
        if len(self.max_shape) != 4 or self.max_shape[2] != self.max_shape[3]:
            raise CheckpointError(
                f"GHN config: max_shape={self.max_shape}; expected (outputs, inputs, side, side) with equal sides."
            )
        numbers = {"hidden_dim": self.hidden_dim, "num_layers": self.num_layers, "num_heads": self.num_heads}
        numbers |= {"num_classes": self.num_classes, "virtual_edge_cutoff": self.virtual_edge_cutoff}
        numbers |= {f"max_shape[{axis}]": size for axis, size in enumerate(self.max_shape)}
        numbers |= {"low_rank": self.low_rank} if self.low_rank is not None else {}
        if bad := {name: value for name, value in numbers.items() if type(value) is not int or value < 1}:
            raise CheckpointError(f"GHN config: expected positive integers, found {bad}.")
        switches = {name: getattr(self, name) for name in ("weight_norm", "layernorm")}
        if bad := {name: value for name, value in switches.items() if type(value) is not bool}:
            raise CheckpointError(f"GHN config: expected true or false, found {bad}.")
        limits = {"num_layers": MAX_LAYERS, "num_classes": MAX_CLASSES, "virtual_edge_cutoff": MAX_CUTOFF}
        for name, value in numbers.items():
            if value > limits.get(name, MAX_SIZE):
                raise CheckpointError(
                    f"GHN config: {name}={value}; expected at most {limits.get(name, MAX_SIZE)}. Is the file damaged?"
                )
        if self.hidden_dim % 4:
            raise CheckpointError(
                f"GHN config: hidden_dim={self.hidden_dim} must be a multiple of 4 (the shape code has four parts)."
            )
        if self.graph_network == "graphormer" and self.hidden_dim % self.num_heads:
            raise CheckpointError(
                f"GHN config: hidden_dim={self.hidden_dim} is not divisible by num_heads={self.num_heads}."
            )

    @property
    def vector_dim(self) -> int:
        """Longest decoded 1-D tensor, M = max(o, c)."""
        return max(self.max_shape[:2])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; where nothing newer is chosen, those of former versions."""
        values = {**dataclasses.asdict(self), "max_shape": list(self.max_shape)}
        newer = {"low_rank": None, "decodes": "values"}
        return {name: value for name, value in values.items() if newer.get(name, ...) != value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> GHNConfig:
        """Read our own config, or the argument dict that the published code stores in its checkpoints.

        Args:
            record: Either `to_dict()` values, or the published names (`hid`, `layers`, `heads`, `ve`, `hypernet`, ...).

        Raises:
            CheckpointError: Unknown keys or values.
        """
        if "hid" in record:
            return cls._from_published(record)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - known):
            raise CheckpointError(f"GHN config: unknown keys {unknown}; expected a subset of {sorted(known)}.")
        return cls(**record)

    @classmethod
    def _from_published(cls, record: Mapping[str, Any]) -> GHNConfig:
        if record.get("decoder", "conv") != "conv":
            raise CheckpointError(
                f"GHN config: decoder={record['decoder']!r} was never released and is not supported; expected 'conv'."
            )
        hypernet = record.get("hypernet", "gatedgnn")
        if hypernet not in ("gatedgnn", "mlp"):
            raise CheckpointError(f"GHN config: hypernet={hypernet!r}; expected 'gatedgnn' or 'mlp'.")
        # The published GHN-3 keeps hypernet='gatedgnn'; what tells it from GHN-2 is that it has layers and no is_ghn2.
        is_graphormer = hypernet == "gatedgnn" and "layers" in record and not record.get("is_ghn2", False)
        network: GraphNetwork = "mlp" if hypernet == "mlp" else "graphormer" if is_graphormer else "gated"
        needed = ("max_shape", "num_classes", *(("heads",) if is_graphormer else ()))
        if missing := [key for key in needed if key not in record]:
            raise CheckpointError(f"GHN config: missing keys {missing}; found {sorted(record)}.")
        sizes = {"num_layers": record["layers"], "num_heads": record["heads"]} if is_graphormer else {}
        return cls(
            graph_network=network,
            hidden_dim=record["hid"],
            max_shape=record["max_shape"],
            num_classes=record["num_classes"],
            weight_norm=record.get("weight_norm", True),
            virtual_edge_cutoff=DEFAULT_CUTOFF if record.get("ve", True) else 1,
            layernorm=record.get("layernorm", True),
            **sizes,
        )


def _ghn3(dim: int, layers: int, heads: int) -> GHNConfig:
    return GHNConfig(hidden_dim=dim, num_layers=layers, num_heads=heads, max_shape=(dim, dim, 16, 16))


# arXiv 2303.04143, table 1; "m8" and "m16" are the meta-batch sizes of the released checkpoints.
PUBLISHED_CONFIGS: dict[str, GHNConfig] = {
    "tm8": _ghn3(64, 3, 8),
    "sm8": _ghn3(128, 5, 16),
    "lm8": _ghn3(256, 12, 16),
    "xlm16": _ghn3(384, 24, 16),
}


def _logah(rank: int, layers: int, dim: int, heads: int) -> GHNConfig:
    return dataclasses.replace(_ghn3(dim, layers, heads), low_rank=rank)


# LoGAH (arXiv 2405.16287), table 1.
LOGAH_CONFIGS: dict[str, GHNConfig] = {
    "tiny": _logah(32, 3, 64, 8),
    "small": _logah(90, 5, 128, 16),
    "base": _logah(128, 5, 256, 16),
    "large": _logah(256, 12, 256, 16),
}
