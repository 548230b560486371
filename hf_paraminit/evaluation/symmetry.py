"""Breaking the symmetry of predicted weights: tiling repeats rows, and equal rows learn the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from hf_paraminit.initializers.wrapping import WrappingInitializer
from hf_paraminit.seeds import seeded_generator

# Legend: R rows, C columns of a weight that is flattened to a matrix, the longer side first.

NOISE = 1e-5  # share of GHN-3's fine-tuning


class SymmetryBroken(WrappingInitializer):
    """Another initializer's values, made orthogonal or with a little noise, before a network is fine-tuned.

    Every weight of two axes or more, but the network's last, whose longer side of the first two exceeds `max_size` (the
    part that a hypernetwork decodes; the rest repeats it) is changed from the `first_layer`-th on, counted from 1 in
    the order of the modules (GHN-3, arXiv 2303.04143, section 3.4; the 2022 report of GHN-2 on fine-tuning).
    """

    name = "symmetry-broken"

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(WrappingInitializer.Config):
        """Settings, beside those of `WrappingInitializer`.

        Attributes:
            noise: Standard deviation of the noise over that of the correlations between rows; 0 for none.
            is_orthogonal: Replace weights by the nearest thing to orthogonal ones, before any noise.
            first_layer: Number of the first weight that is changed.
            max_size: Only larger weights are changed, and noise only comes beyond this row and column.
        """

        noise: float = NOISE
        is_orthogonal: bool = False
        first_layer: int = 1
        max_size: int = 64

        def validate(self) -> None:
            WrappingInitializer.Config.validate(self)
            if not 0 <= self.noise < float("inf") or self.first_layer < 1 or self.max_size < 0:
                raise ValueError(
                    "expected a noise and a max_size of at least 0 and a first_layer of at least 1, found "
                    f"{self.noise}, {self.max_size} and {self.first_layer}"
                )

    config: Config

    @property
    def identifier(self) -> str:
        return f"{self.name} {self.original.identifier}"

    def change(self, target: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen = set(self._chosen(target))
        return {name: self._broken(name, value) if name in chosen else value for name, value in values.items()}

    def _chosen(self, target: nn.Module) -> Iterator[str]:
        weights = weight_shapes(target)
        for number, (name, shape) in enumerate(list(weights.items())[:-1], start=1):
            if number >= self.config.first_layer and max(shape[:2]) > self.config.max_size:
                yield name

    def _broken(self, name: str, value: Tensor) -> Tensor:
        value = value.detach().to("cpu", torch.float32)
        if self.config.is_orthogonal:
            value = orthogonalized(value)
        if self.config.noise == 0:
            return value
        generator = seeded_generator(self.config.seed, self.name, name)
        return with_noise(value, self.config.noise, max_size=self.config.max_size, generator=generator)


def weight_shapes(network: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all weights of two axes or more, by name, in the order of the modules."""
    return {
        f"{path}.weight" if path else "weight": tuple(module.weight.shape)
        for path, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() >= 2
    }


def with_noise(weight: Tensor, noise: float, *, max_size: int, generator: Generator) -> Tensor:
    """Add noise to a weight (out, in, ...) beyond row and column `max_size`; the scale is `noise` * `row_spread`."""
    result = weight.clone()
    part = result[max_size:, max_size:]
    part += noise * row_spread(weight) * torch.randn(part.shape, generator=generator)
    return result


def row_spread(weight: Tensor) -> float:
    """Standard deviation over all entries of the matrix of correlations between the rows of a weight.

    The weight is flattened to (R, C) with R >= C. The (R, R) matrix is never made: the sum of its squares is that of
    the (C, C) one. Constant rows, which correlate with nothing, count as 0.
    """
    rows = _tall(weight)[0].double()
    rows = rows - rows.mean(1, keepdim=True)
    lengths = rows.norm(dim=1, keepdim=True)
    rows = torch.where(lengths > 0, rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny), 0.0)
    count = len(rows) ** 2
    if count < 2:
        return 0.0
    mean = float(rows.sum(0).square().sum()) / count
    squares = float((rows.T @ rows).square().sum())
    return max(0.0, (squares - count * mean**2) / (count - 1)) ** 0.5


def orthogonalized(weight: Tensor) -> Tensor:
    """Orthonormal columns of the weight's flattened matrix (R, C): the Q of its QR, signed as the diagonal of R."""
    tall, is_turned = _tall(weight)
    q, r = torch.linalg.qr(tall)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return (q.T if is_turned else q).reshape(weight.shape)


def _tall(weight: Tensor) -> tuple[Tensor, bool]:
    flat = weight.flatten(1)
    is_turned = flat.shape[0] < flat.shape[1]
    return (flat.T if is_turned else flat), is_turned
