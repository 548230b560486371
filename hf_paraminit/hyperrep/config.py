"""What defines the two auto-encoders of weights, and how the published code spells it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from hf_paraminit.errors import CheckpointError

MAX_SIZE = 2**20  # far beyond every published size; a damaged config must not ask for endless tensors
PUBLISHED_PROJECTION = 30  # width of SANE's projection head


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceConfig:
    """Architecture of SANE's sequence auto-encoder (arXiv 2406.09997, section 3.1). All values are plain JSON.

    Attributes:
        token_dim: Weights per token, t.
        model_dim: Width d of the transformers.
        num_heads: Attention heads.
        num_layers: Blocks of the encoder, and of the decoder.
        latent_dim: Width z of a token's code.
        window: Tokens of a training window; the projection head takes windows of this length only.
        positions: "learned" is the published table per axis; "sinusoidal" knows positions that training never saw.
        max_positions: Rows of each learned table, in the order of the position's axes.
        position_axes: Numbers that a position consists of; 3 are (token, layer, channel).
        blocks: "gpt2" (pre-norm, no biases), "torch" (post-norm), or "torch-batch-axis": as published under the name
            "pytorch", where attention runs over the batch by mistake. The last is for reading recorded outputs only.
        dropout: Share of values that training drops.
        projection_dim: Width of the head that the contrastive loss looks at; 0 leaves the head out.
    """

    token_dim: int
    model_dim: int = 64
    num_heads: int = 4
    num_layers: int = 2
    latent_dim: int = 16
    window: int = 64
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"
    max_positions: tuple[int, ...] = ()
    position_axes: int = 3
    blocks: Literal["gpt2", "torch", "torch-batch-axis"] = "gpt2"
    dropout: float = 0.0
    projection_dim: int = PUBLISHED_PROJECTION

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_positions", tuple(self.max_positions))
        sizes = ("token_dim", "model_dim", "num_heads", "num_layers", "latent_dim", "window", "position_axes")
        _require_sizes(type(self).__name__, {name: getattr(self, name) for name in sizes})
        _require_choice(self, positions=("learned", "sinusoidal"), blocks=("gpt2", "torch", "torch-batch-axis"))
        if self.model_dim % self.num_heads or self.model_dim % 2:
            raise CheckpointError(
                f"{type(self).__name__}: model_dim={self.model_dim} must be even and divisible by "
                f"num_heads={self.num_heads}."
            )
        if self.positions == "learned" and len(self.max_positions) not in (2, 3):
            raise CheckpointError(
                f"{type(self).__name__}: learned positions need 2 or 3 max_positions, found {self.max_positions}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**dataclasses.asdict(self), "max_positions": list(self.max_positions)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read our own values, or those of the published code (`ae:i_dim` and so on).

        Raises:
            CheckpointError: Unknown or missing keys, or values that cannot be.
        """
        if "ae:i_dim" in record:
            return cls(**_from_published(record))
        return _known_only(cls, record)


def _from_published(record: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"gpt2": "gpt2", "pytorch": "torch-batch-axis"}
    kind = record.get("ae:transformer_type", "gpt2")
    if kind not in kinds:
        raise CheckpointError(f"SANE config: ae:transformer_type={kind!r}; expected one of {', '.join(kinds)}.")
    names = {
        "token_dim": "ae:i_dim",
        "model_dim": "ae:d_model",
        "num_heads": "ae:nhead",
        "num_layers": "ae:num_layers",
        "latent_dim": "ae:lat_dim",
        "window": "training::windowsize",
        "max_positions": "ae:max_positions",
    }
    if missing := [key for key in names.values() if key not in record]:
        raise CheckpointError(f"SANE config: missing keys {missing}; found {sorted(record)}.")
    return {
        **{ours: record[theirs] for ours, theirs in names.items()},
        "position_axes": len(record["ae:max_positions"]),
        "positions": "learned",
        "blocks": kinds[kind],
        "dropout": record.get("ae:dropout", 0.0),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorLayer:
    """One layer's part of a flattened network: its weights row by row, then its biases.

    Attributes:
        name: What reports call it; the published code numbers layers by their place in a list of modules.
        start: First position in the vector.
        num_neurons: Output channels.
        inputs: Weights per output channel: input channels times kernel elements.
        loss_weight: Factor of its part of the reconstruction loss.
    """

    name: str
    start: int
    num_neurons: int
    inputs: int
    loss_weight: float = 1.0

    @property
    def length(self) -> int:
        """Weights and biases together."""
        return self.num_neurons * (self.inputs + 1)

    @property
    def stop(self) -> int:
        """Position after its last one."""
        return self.start + self.length


def layers_from_index(index: Mapping[str, Sequence[Any]]) -> tuple[VectorLayer, ...]:
    """Read the published `index_dict`: lists with one entry per layer.

    Raises:
        CheckpointError: Lengths that contradict each other.
    """
    weights = index.get("loss_weight", [1.0] * len(index["layer"]))
    layers = tuple(
        VectorLayer(name=str(layer[0]), start=start, num_neurons=out, inputs=into * kernel, loss_weight=float(weight))
        for layer, start, out, into, kernel, weight in zip(
            index["layer"],
            index["idx_start"],
            index["kernel_no"],
            index["channels_in"],
            index["kernel_size"],
            weights,
            strict=True,
        )
    )
    bad = [
        f"layer {layer.name}: {layer.length} instead of {length}"
        for layer, length in zip(layers, index["idx_length"], strict=True)
        if layer.length != length
    ]
    if bad:
        raise CheckpointError(f"index_dict: lengths that kernels and channels do not give: {'; '.join(bad)}.")
    return layers


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalConfig:
    """Architecture of the auto-encoder of whole networks (arXiv 2209.14733, section 2). All values are plain JSON.

    Attributes:
        layers: The networks' layers, which together are the whole vector.
        encoding: A token is a "neuron" (its weights and bias) or a single "weight".
        model_dim: Width d of the transformers.
        num_heads: Attention heads.
        num_blocks: Blocks of the encoder, and of the decoder.
        feedforward_dim: Hidden width of the blocks' perceptrons.
        latent_dim: Length L of a network's code.
        normalize: Whether blocks have norms.
        compression: From tokens to one vector: an additional "token", their "average", or all of them ("linear").
        decompression: From the code to tokens: a "linear" map to all, or one vector for each ("repeat").
        bounded: Whether codes pass a tanh.
        decoder_bias: Whether a learned vector is added to the code.
        blocks: "pre-norm", or "torch-batch-axis": published under the name "pytorch", where attention runs over the
            batch by mistake. The last is for reading recorded outputs only.
        dropout: Share of values that training drops.
    """

    layers: tuple[VectorLayer, ...]
    encoding: Literal["neuron", "weight"] = "neuron"
    model_dim: int = 64
    num_heads: int = 4
    num_blocks: int = 2
    feedforward_dim: int = 96
    latent_dim: int = 128
    normalize: bool = True
    compression: Literal["token", "average", "linear"] = "token"
    decompression: Literal["linear", "repeat"] = "linear"
    bounded: bool = True
    decoder_bias: bool = False
    blocks: Literal["pre-norm", "torch-batch-axis"] = "pre-norm"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        layers = tuple(VectorLayer(**layer) if isinstance(layer, Mapping) else layer for layer in self.layers)
        object.__setattr__(self, "layers", layers)
        sizes = ("model_dim", "num_heads", "num_blocks", "feedforward_dim", "latent_dim")
        _require_sizes(type(self).__name__, {name: getattr(self, name) for name in sizes})
        _require_choice(
            self,
            encoding=("neuron", "weight"),
            compression=("token", "average", "linear"),
            decompression=("linear", "repeat"),
            blocks=("pre-norm", "torch-batch-axis"),
        )
        ends = [0, *(layer.stop for layer in layers)]
        gaps = [layer.name for layer, end in zip(layers, ends, strict=False) if layer.start != end]
        if gaps or not layers:
            raise CheckpointError(
                f"{type(self).__name__}: layers must follow each other without gaps; check {gaps or 'the empty list'}."
            )

    @property
    def num_weights(self) -> int:
        """Length of the vector."""
        return self.layers[-1].stop

    @property
    def num_tokens(self) -> int:
        """Neurons, or weights, of a network."""
        return self.num_weights if self.encoding == "weight" else sum(layer.num_neurons for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**dataclasses.asdict(self), "layers": [dataclasses.asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], index: Mapping[str, Sequence[Any]] | None = None) -> Self:
        """Read our own values, or those of the published code (`model::latent_dim` and so on) with its `index_dict`.

        Raises:
            CheckpointError: Unknown or missing keys, or values that cannot be.
        """
        if index is None:
            return _known_only(cls, record)
        kinds = {"pol": "pre-norm", "pytorch": "torch-batch-axis"}
        kind = record.get("model::transformer_type", "pol")
        bottleneck = record.get("model::bottleneck", "linear")
        if kind not in kinds or bottleneck not in ("linear", "linear_bounded"):
            raise CheckpointError(
                f"Published config: expected a transformer_type of {', '.join(kinds)} and a linear or linear_bounded "
                f"bottleneck, found {kind!r} and {bottleneck!r}."
            )
        return cls(
            layers=layers_from_index(index),
            encoding=record.get("model::encoding", "neuron"),
            model_dim=record["model::dim_attention_embedding"],
            num_heads=record["model::N_attention_heads"],
            num_blocks=record["model::N_attention_blocks"],
            feedforward_dim=record["model::attention_hidden_dim"],
            latent_dim=record["model::latent_dim"],
            normalize=bool(record.get("model::normalize")),
            compression=record.get("model::compression", "token"),
            decompression=record.get("model::decompression", "linear"),
            bounded=bottleneck == "linear_bounded",
            decoder_bias=bool(record.get("model::decoder_bias", False)),
            blocks=kinds[kind],  # type: ignore[arg-type]
            dropout=record.get("model::dropout", 0.0),
        )


def _known_only(cls: Any, record: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(record) - known):
        raise CheckpointError(f"{cls.__name__}: unknown keys {unknown}; expected a subset of {sorted(known)}.")
    try:
        return cls(**record)
    except TypeError as error:
        raise CheckpointError(f"{cls.__name__}: {error}; found {sorted(record)}.") from error


def _require_sizes(owner: str, sizes: Mapping[str, object]) -> None:
    bad = {name: value for name, value in sizes.items() if type(value) is not int or not 1 <= value <= MAX_SIZE}
    if bad:
        raise CheckpointError(f"{owner}: expected integers in 1..{MAX_SIZE}, found {bad}.")


def _require_choice(config: Any, **choices: tuple[str, ...]) -> None:
    bad = [
        f"{name}={getattr(config, name)!r}" for name, allowed in choices.items() if getattr(config, name) not in allowed
    ]
    if bad:
        raise CheckpointError(f"{type(config).__name__}: {', '.join(bad)}; expected {choices}.")
