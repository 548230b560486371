"""Tokens of weights: the rows of a network's tensors, cut into vectors of one width, and back without loss.

A row is what one output unit reads, its bias last (as in "Towards Scalable and Versatile Weight Space Learning", ICML
2024). A row longer than a token is cut into neighbouring tokens, the last one filled up with zeros.

Axes: B checkpoints (any leading axes), N tokens of a network, T width of a token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.tensors import KINDS, Kind, TensorSpec, describe_module

Policy = Literal["skip", "packed", "channels"]
Form = Literal["columns", "rows"]

MAX_EMBEDDING_ROWS = 4096  # a vocabulary of 50 000 would be more tokens than the rest of its network
FORMAT_VERSION = 1
_INT16_MAX = 32767  # positions are int16 up to here, int32 beyond
_MAX_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class TokenLayer:
    """Tensors that share the rows of one block of tokens.

    Attributes:
        index: Running number l of the layer.
        kind: Kind of its first tensor.
        form: "columns" reads the first tensor as (rows, -1) and appends the others as last columns; "rows" makes each
            tensor a row.
        names: Keys of its tensors, weight first.
        shapes: Their shapes.
        dtypes: Their dtypes by name.
        is_head: Whether it is the classifier.
        start: First token.
        token_dim: T.
    """

    index: int
    kind: Kind
    form: Form
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    is_head: bool
    start: int
    token_dim: int

    @property
    def num_rows(self) -> int:
        """Output units."""
        return (self.shapes[0] or (1,))[0] if self.form == "columns" else len(self.names)

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each tensor, or for the form "rows" of one tensor."""
        sizes = tuple(torch.Size(shape).numel() for shape in self.shapes)
        return tuple(size // self.num_rows for size in sizes) if self.form == "columns" else sizes[:1]

    @property
    def num_columns(self) -> int:
        """Values of one row, its bias included."""
        return sum(self.widths)

    @property
    def num_chunks(self) -> int:
        """Tokens of one row."""
        return -(-self.num_columns // self.token_dim)

    @property
    def num_tokens(self) -> int:
        """Tokens of the layer."""
        return self.num_rows * self.num_chunks

    @property
    def tokens(self) -> slice:
        """Its tokens within the network's."""
        return slice(self.start, self.start + self.num_tokens)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """(B, rows, columns) of tensors (B, *shape)."""
        leading = tensors[0].shape[: tensors[0].ndim - len(self.shapes[0])]
        if self.form == "columns":
            return torch.cat([tensor.reshape(*leading, self.num_rows, -1) for tensor in tensors], -1)
        return torch.stack([tensor.reshape(*leading, -1) for tensor in tensors], -2)

    def split(self, matrix: Tensor) -> list[Tensor]:
        """The inverse of `join`."""
        leading = matrix.shape[:-2]
        parts = matrix.split(self.widths, -1) if self.form == "columns" else matrix.unbind(-2)
        return [part.reshape((*leading, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def describe(self) -> str:
        """Names and shapes, for messages."""
        return ", ".join(f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True))


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Which values of a network stand where in its tokens.

    Make one with `from_module`, `from_tensors` or `from_dict`.

    Attributes:
        token_dim: Width T of a token.
        layers: Blocks of tokens in the order of the state dict.
        skipped: Tensors without tokens, with the reason.
        tied: Keys that are the same tensor as another key, which has the tokens.
    """

    token_dim: int
    layers: tuple[TokenLayer, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        token_dim: int | None = None,
        *,
        norms: Policy = "skip",
        statistics: Policy = "skip",
        max_embedding_rows: int = MAX_EMBEDDING_ROWS,
        head: str | None = None,
    ) -> Self:
        """Lay out a network.

        Args:
            model: Network on any device, meta included.
            token_dim: T; None for the longest row.
            norms: What becomes of scales and shifts of norm layers: "skip" leaves them out, "packed" makes scale and
                shift a row each, "channels" makes a row of each channel (as published, mostly padding).
            statistics: Likewise for buffers such as running means and variances.
            max_embedding_rows: Embeddings with more rows are left out.
            head: Name of the classifier's module; None finds it.

        Raises:
            CheckpointError: Nothing is left to make tokens of, or a width below 1.
        """
        return cls.from_tensors(
            describe_module(model, head=head),
            token_dim,
            norms=norms,
            statistics=statistics,
            max_embedding_rows=max_embedding_rows,
        )

    @classmethod
    def from_tensors(
        cls,
        tensors: Iterable[TensorSpec],
        token_dim: int | None = None,
        *,
        norms: Policy = "skip",
        statistics: Policy = "skip",
        max_embedding_rows: int = MAX_EMBEDDING_ROWS,
    ) -> Self:
        """Lay out described tensors, for instance `Zoo.tensors`; arguments as for `from_module`."""
        tensors = tuple(tensors)
        policies: dict[Kind, Policy] = {"norm": norms, "statistic": statistics}
        reasons = {spec.name: _reason_to_skip(spec, policies, max_embedding_rows) for spec in tensors}
        skipped = {name: reason for name, reason in reasons.items() if reason}
        tied = {spec.name: spec.tied_to for spec in tensors if spec.tied_to and spec.name not in skipped}
        by_name = {spec.name: spec for spec in tensors}
        biases = {spec.bias for spec in tensors if spec.bias and spec.name not in skipped and not spec.tied_to}
        blocks = [
            _block(spec, by_name, policies)
            for spec in tensors
            if spec.name not in skipped and spec.name not in tied and spec.name not in biases
        ]
        return cls._of_blocks(blocks, token_dim, skipped, tied)

    @classmethod
    def _of_blocks(
        cls, blocks: list[dict[str, Any]], token_dim: int | None, skipped: Mapping[str, str], tied: Mapping[str, str]
    ) -> Self:
        if not blocks:
            raise CheckpointError(
                f"Cannot make tokens: none of {len(skipped)} tensors is a weight. Give a network with parameters."
            )
        unplaced = [TokenLayer(index=0, start=0, token_dim=1, **block) for block in blocks]
        width = max(layer.num_columns for layer in unplaced) if token_dim is None else token_dim
        if width < 1:
            raise CheckpointError(f"Cannot make tokens of width {token_dim}; give token_dim of at least 1.")
        layers: list[TokenLayer] = []
        start = 0
        for index, block in enumerate(blocks):
            layers.append(TokenLayer(index=index, start=start, token_dim=width, **block))
            start += layers[-1].num_tokens
        return cls(token_dim=width, layers=tuple(layers), skipped=dict(skipped), tied=dict(tied))

    # ------------------------------------------------------------------ sizes, positions, masks

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.layers[-1].tokens.stop

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of all tensors that have tokens, in token order, without tied ones."""
        return tuple(name for layer in self.layers for name in layer.names)

    @cached_property
    def mask(self) -> Tensor:
        """(N, T) bool; True where a value of the network sits, False for padding."""
        columns = torch.arange(self.token_dim)
        remaining = self._per_token(lambda layer: layer.num_columns) - self.chunks * self.token_dim
        return columns < remaining[:, None]

    @cached_property
    def positions(self) -> Tensor:
        """(N, 3): number n of the token, of its layer l, and of its output unit k (row); int16, or int32 if needed."""
        rows = [torch.arange(layer.num_rows).repeat_interleave(layer.num_chunks) for layer in self.layers]
        index = torch.arange(self.num_tokens)
        positions = torch.stack([index, self._per_token(lambda layer: layer.index), torch.cat(rows)], -1)
        return positions.to(torch.int16 if int(positions.max()) <= _INT16_MAX else torch.int32)

    @cached_property
    def chunks(self) -> Tensor:
        """(N,) int64 number of the token within its row."""
        return torch.cat([torch.arange(layer.num_chunks).repeat(layer.num_rows) for layer in self.layers])

    @cached_property
    def kinds(self) -> Tensor:
        """(N,) int64 index into `tensors.KINDS`."""
        return self._per_token(lambda layer: KINDS.index(layer.kind))

    @cached_property
    def depths(self) -> Tensor:
        """(N,) float32 place of the layer, 0 for the first and 1 for the last."""
        return self._per_token(lambda layer: layer.index).float() / max(1, len(self.layers) - 1)

    def _per_token(self, value: Any) -> Tensor:
        counts = torch.tensor([layer.num_tokens for layer in self.layers])
        return torch.tensor([value(layer) for layer in self.layers]).repeat_interleave(counts)

    # ------------------------------------------------------------------ weights to tokens and back

    def tokenize(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Cut weights into tokens.

        Args:
            state_dict: Tensors (B, *shape) by key; all with the same leading axes, or none. Other keys are ignored.

        Returns:
            (B, N, T) tokens in the widest dtype of the tensors, padding 0.

        Raises:
            CheckpointError: Tensors are missing or have other shapes; all are named.
        """
        self.check(state_dict)
        return torch.cat([self._cut(layer, state_dict) for layer in self.layers], -2)

    def detokenize(self, tokens: Tensor) -> dict[str, Tensor]:
        """Put weights together again; the exact inverse of `tokenize`.

        Args:
            tokens: (B, N, T); values at padding are ignored.

        Returns:
            Tensors (B, *shape) by key, tied keys included, in the dtypes of the network.

        Raises:
            CheckpointError: The tokens are of another number or width.
        """
        if tokens.shape[-2:] != (self.num_tokens, self.token_dim):
            raise CheckpointError(
                f"Cannot turn tokens {tuple(tokens.shape)} into weights: this layout has {self.num_tokens} tokens of "
                f"width {self.token_dim}. Use the layout that the tokens were made with."
            )
        found: dict[str, Tensor] = {}
        for layer in self.layers:
            rows = tokens[..., layer.tokens, :].unflatten(-2, (layer.num_rows, layer.num_chunks)).flatten(-2)
            parts = layer.split(rows[..., : layer.num_columns])
            dtypes = (getattr(torch, dtype) for dtype in layer.dtypes)
            found |= {name: part.to(dtype) for name, part, dtype in zip(layer.names, parts, dtypes, strict=True)}
        return found | {alias: found[name] for alias, name in self.tied.items() if name in found}

    def to_vector(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """All weights as (B, num_values): layer by layer, each weight in memory order and then its bias."""
        self.check(state_dict)
        leading = self._leading(state_dict)
        return torch.cat([state_dict[name].reshape(*leading, -1) for name in self.names], -1)

    def from_vector(self, vector: Tensor) -> dict[str, Tensor]:
        """The inverse of `to_vector`."""
        shapes = [shape for layer in self.layers for shape in layer.shapes]
        dtypes = [getattr(torch, dtype) for layer in self.layers for dtype in layer.dtypes]
        parts = vector.split([torch.Size(shape).numel() for shape in shapes], -1)
        found = {
            name: part.reshape((*vector.shape[:-1], *shape)).to(dtype)
            for name, part, shape, dtype in zip(self.names, parts, shapes, dtypes, strict=True)
        }
        return found | {alias: found[name] for alias, name in self.tied.items() if name in found}

    @property
    def num_values(self) -> int:
        """Weights that have a place in the tokens."""
        return sum(layer.num_rows * layer.num_columns for layer in self.layers)

    def check(self, state_dict: Mapping[str, Tensor]) -> None:
        """Compare tensors with the layout.

        Raises:
            CheckpointError: Tensors are missing or have other shapes; all are named.
        """
        faults = list(self._faults(state_dict))
        if faults:
            raise CheckpointError(
                f"Weights do not fit a layout of {len(self.layers)} layers: {_listed(faults)}. Use the network that "
                "the layout was made of, or make a layout of this one."
            )

    def _faults(self, state_dict: Mapping[str, Tensor]) -> Iterator[str]:
        leading = self._leading(state_dict)
        for layer in self.layers:
            for name, shape in zip(layer.names, layer.shapes, strict=True):
                if name not in state_dict:
                    yield f"{name} {shape} is missing"
                elif (found := tuple(state_dict[name].shape)) != (*leading, *shape):
                    yield f"{name} is {found}, expected {(*leading, *shape)}"

    def _leading(self, state_dict: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Leading axes of the first tensor that is there, which the others must share."""
        for layer in self.layers:
            for name, shape in zip(layer.names, layer.shapes, strict=True):
                if name in state_dict:
                    found = state_dict[name].shape
                    return tuple(found[: max(0, len(found) - len(shape))])
        return ()

    def _cut(self, layer: TokenLayer, state_dict: Mapping[str, Tensor]) -> Tensor:
        matrix = layer.join([state_dict[name] for name in layer.names])
        padded = F.pad(matrix, (0, layer.num_chunks * self.token_dim - layer.num_columns))
        return padded.unflatten(-1, (layer.num_chunks, self.token_dim)).flatten(-3, -2)

    # ------------------------------------------------------------------ identity, storage

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the token width and all layers but the classifier; equal for layouts that share a body."""
        body = [self.token_dim, *(_layer_record(layer) for layer in self.layers if not layer.is_head)]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()

    def differences(self, other: TokenLayout, *, with_head: bool = True) -> list[str]:
        """Where another layout differs, one line for each layer; empty for equal layouts.

        Args:
            other: Layout that was found where this one was expected.
            with_head: Compare classifiers, too.
        """
        lines = []
        if self.token_dim != other.token_dim:
            lines.append(f"tokens are {other.token_dim} wide, expected {self.token_dim}")
        mine, theirs = ({layer.names[0]: layer for layer in layout.layers} for layout in (self, other))
        for name in {**mine, **theirs}:
            layer, found = mine.get(name), theirs.get(name)
            if not with_head and all(entry is None or entry.is_head for entry in (layer, found)):
                continue
            if layer is None or found is None:
                present = layer or found
                assert present is not None
                lines.append(f"{present.describe()} {'is missing' if found is None else 'is not expected'}")
            elif _layer_record(layer) != _layer_record(found):
                lines.append(f"{found.describe()}, expected {layer.describe()}")
        if not lines and [*mine] != [*theirs]:
            lines.append("the layers stand in another order")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        layers = [
            {**_layer_record(layer), "dtypes": list(layer.dtypes), "is_head": layer.is_head,
             "tokens": [layer.tokens.start, layer.tokens.stop]}
            for layer in self.layers
        ]  # fmt: skip
        return {
            "format_version": FORMAT_VERSION,
            "token_dim": self.token_dim,
            "fingerprint": self.fingerprint,
            "layers": layers,
            "skipped": dict(self.skipped),
            "tied": dict(self.tied),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: These are not the values of a layout, or they were changed since they were written.
        """
        try:
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version {values['format_version']}, this release reads {FORMAT_VERSION}")
            blocks = [_block_of_record(record) for record in values["layers"]]
            layout = cls._of_blocks(blocks, int(values["token_dim"]), values["skipped"], values["tied"])
            if layout.fingerprint != values["fingerprint"]:
                raise ValueError("its layers do not match its fingerprint")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"Cannot read a token layout: {error!r:.300}. Write it again.") from error
        return layout


def legacy_layout(
    state_dict: Mapping[str, Tensor], token_dim: int = 0, *, ignore_batchnorm: bool = True
) -> TokenLayout:
    """Lay out a state dict by the published rules, which go by names alone.

    Kept for published representations; for anything new use `TokenLayout.from_module`. Parameters whose name holds
    neither `weight` nor `running_` are dropped, and so is every `downsample.1`, which is a convolution in ConvNeXt.

    Args:
        state_dict: Weights of a network.
        token_dim: T; 0 for the longest row among weights that have a bias, as published.
        ignore_batchnorm: Leave out keys that contain "bn", "downsample.1" or "batchnorm".
    """
    blocks: list[dict[str, Any]] = []
    dropped: dict[str, str] = {}
    for name, tensor in state_dict.items():
        is_norm = any(part in name for part in ("bn", "downsample.1", "batchnorm"))
        is_layer = any(part in name for part in ("weight", "running_mean", "running_var"))
        if not is_layer or (is_norm and ignore_batchnorm):
            dropped[name] = "left out by the published rules"
            continue
        bias = name.replace("weight", "bias")
        names = (name, bias) if "weight" in name and bias in state_dict else (name,)
        blocks.append(
            {
                "kind": "matrix" if tensor.ndim > 1 else "norm" if "weight" in name else "statistic",
                "form": "columns",
                "names": names,
                "shapes": tuple(tuple(state_dict[key].shape) for key in names),
                "dtypes": tuple(str(state_dict[key].dtype).removeprefix("torch.") for key in names),
                "is_head": False,
            }
        )
    kept = {key for block in blocks for key in block["names"]}
    if blocks:
        blocks[-1]["is_head"] = blocks[-1]["kind"] == "matrix"
    widths = [_num_columns(block) for block in blocks if len(block["names"]) == 2]
    skipped = {name: reason for name, reason in dropped.items() if name not in kept}
    return TokenLayout._of_blocks(blocks, token_dim or max(widths, default=1), skipped, {})


def _reason_to_skip(spec: TensorSpec, policies: Mapping[Kind, Policy], max_embedding_rows: int) -> str:
    """Why a tensor gets no tokens; empty if it gets some."""
    if spec.kind == "other":
        return "no floating-point values"
    if policies.get(spec.kind) == "skip":
        return "norm layers are left out" if spec.kind == "norm" else "statistics are left out"
    if spec.num_embeddings > max_embedding_rows:
        return f"an embedding of {spec.num_embeddings} rows, more than {max_embedding_rows}"
    return ""


def _block(spec: TensorSpec, by_name: Mapping[str, TensorSpec], policies: Mapping[Kind, Policy]) -> dict[str, Any]:
    by_columns = spec.kind == "matrix" or policies.get(spec.kind) == "channels"
    members = [spec] if spec.bias is None else [spec, by_name[spec.bias]]
    return {
        "kind": spec.kind,
        "form": "columns" if by_columns else "rows",
        "names": tuple(member.name for member in members),
        "shapes": tuple(member.shape for member in members),
        "dtypes": tuple(member.dtype for member in members),
        "is_head": spec.is_head,
    }


def _num_columns(block: dict[str, Any]) -> int:
    return TokenLayer(index=0, start=0, token_dim=1, **block).num_columns


def _layer_record(layer: TokenLayer) -> dict[str, Any]:
    """What makes layers equal."""
    return {
        "kind": layer.kind,
        "form": layer.form,
        "names": list(layer.names),
        "shapes": [list(shape) for shape in layer.shapes],
    }


def _block_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    if record["kind"] not in KINDS or record["form"] not in ("columns", "rows"):
        raise ValueError(f"a layer of kind {record['kind']!r} and form {record['form']!r}")
    return {
        "kind": record["kind"],
        "form": record["form"],
        "names": tuple(str(name) for name in record["names"]),
        "shapes": tuple(tuple(int(size) for size in shape) for shape in record["shapes"]),
        "dtypes": tuple(str(dtype) for dtype in record["dtypes"]),
        "is_head": bool(record["is_head"]),
    }


def _listed(faults: Sequence[str]) -> str:
    more = f", and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
    return "; ".join(faults[:_MAX_NAMED]) + more
