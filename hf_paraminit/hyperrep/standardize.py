"""Standardisation of weights layer by layer, so that no layer's scale decides a reconstruction loss alone.

Weight and bias of a layer share one mean and one standard deviation over the zoo (SANE, section 3; the statistics are
taken after alignment, over the training split).

Axes: B checkpoints (any leading axes), N tokens, T width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.tokens import TokenLayer, TokenLayout

Mode = Literal["std", "minmax", "network"]


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """x -> (x - shift) / scale, with one pair of numbers for each layer.

    Attributes:
        mode: "std" for mean and standard deviation of each layer, "minmax" for the map of its observed range to -1..1,
            "network" for one mean and standard deviation of all layers, which lets large weights decide.
        shift: By the layer's first key.
        scale: Likewise; never 0.
    """

    mode: Mode
    shift: Mapping[str, float]
    scale: Mapping[str, float]

    @classmethod
    def fit(cls, layout: TokenLayout, checkpoints: Iterable[Mapping[str, Tensor]], mode: Mode = "std") -> Self:
        """Take the statistics of a zoo.

        The mean is that of the checkpoints' means; the standard deviation is the root of the mean of the checkpoints'
        unbiased variances.

        Args:
            layout: Which tensors make a layer.
            checkpoints: State dicts, each of one checkpoint or of several stacked ones.
            mode: What to take.

        Raises:
            CheckpointError: No checkpoint, one that does not fit the layout, or NaN and infinite weights.
        """
        if mode not in get_args(Mode):
            raise CheckpointError(f"Cannot standardise by {mode!r}; modes are {', '.join(get_args(Mode))}.")
        take = _range if mode == "minmax" else _moments
        parts: dict[str, list[Tensor]] = {layer.names[0]: [] for layer in layout.layers}
        for checkpoint in checkpoints:
            layout.check(checkpoint)
            values = {layer.names[0]: _values(layer, checkpoint) for layer in layout.layers}
            if mode == "network":
                values = dict.fromkeys(values, torch.cat([*values.values()], -1))
            for name, found in values.items():
                parts[name].append(take(found))
        if not parts[layout.layers[0].names[0]]:
            raise CheckpointError("Cannot standardise weights: there is no checkpoint. Check the filters of the zoo.")
        summarize = _of_range if mode == "minmax" else _of_moments
        pairs = {name: summarize(torch.cat(part)) for name, part in parts.items()}
        if broken := [name for name, pair in pairs.items() if not all(map(math.isfinite, pair))]:
            raise CheckpointError(
                f"Cannot standardise weights: {', '.join(broken)} hold NaN or infinite values. Remove such checkpoints "
                "with `Zoo.clean()`."
            )
        return cls(
            mode=mode,
            shift={name: shift for name, (shift, _) in pairs.items()},
            scale={name: scale or 1.0 for name, (_, scale) in pairs.items()},  # a constant layer keeps its scale
        )

    def apply(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Standardise tokens (B, N, T); padding stays 0."""
        shift, scale = self._per_token(tokens, layout)
        return ((tokens - shift) / scale) * layout.mask.to(tokens.device)

    def invert(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """The inverse of `apply`; padding is 0 afterwards."""
        shift, scale = self._per_token(tokens, layout)
        return (tokens * scale + shift) * layout.mask.to(tokens.device)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"mode": self.mode, "shift": dict(self.shift), "scale": dict(self.scale)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: These are not such values.
        """
        try:
            shift, scale = ({str(name): float(x) for name, x in values[key].items()} for key in ("shift", "scale"))
            is_sound = values["mode"] in get_args(Mode) and [*shift] == [*scale]
            if not is_sound or not all(math.isfinite(x) and x != 0 for x in scale.values()):
                raise ValueError("an unknown mode, or layers without a finite scale")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"Cannot read how a zoo was standardised: {error!r:.200}. Write it again.") from error
        return cls(mode=values["mode"], shift=shift, scale=scale)

    def _per_token(self, tokens: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Shift and scale as (N, 1)."""
        names = [layer.names[0] for layer in layout.layers]
        if missing := [name for name in names if name not in self.shift]:
            raise CheckpointError(
                f"Cannot standardise tokens: there are no statistics of {', '.join(missing)}. Use those of the zoo "
                "that the layout belongs to."
            )
        counts = torch.tensor([layer.num_tokens for layer in layout.layers])
        shift, scale = (
            torch.tensor([values[name] for name in names], dtype=tokens.dtype).repeat_interleave(counts)[:, None]
            for values in (self.shift, self.scale)
        )
        return shift.to(tokens.device), scale.to(tokens.device)


def _values(layer: TokenLayer, checkpoint: Mapping[str, Tensor]) -> Tensor:
    """(B, values) float64 of a layer; B is 1 for a single checkpoint."""
    matrix = layer.join([checkpoint[name] for name in layer.names]).double()
    return matrix.reshape(-1, layer.num_rows * layer.num_columns)


def _moments(values: Tensor) -> Tensor:
    variance = values.var(-1) if values.shape[-1] > 1 else torch.zeros(len(values), dtype=values.dtype)
    return torch.stack([values.mean(-1), variance], -1)


def _of_moments(parts: Tensor) -> tuple[float, float]:
    mean, variance = parts.mean(0).tolist()
    return mean, math.sqrt(variance)


def _range(values: Tensor) -> Tensor:
    return torch.stack([values.amin(-1), values.amax(-1)], -1)


def _of_range(parts: Tensor) -> tuple[float, float]:
    low, high = float(parts[:, 0].min()), float(parts[:, 1].max())
    return (high + low) / 2, (high - low) / 2
