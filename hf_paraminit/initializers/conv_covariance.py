"""Depthwise filters drawn with the covariance of trained ones, inspired by arXiv 2210.03651."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.model import ModelStructure

MIN_SIDE = 5  # smaller filters show no such pattern


@register_initializer(
    "conv-covariance", summary="large depthwise filters with a covariance like that of trained ones", paper="2210.03651"
)
class ConvCovariance(FormulaInitializer):
    """Our simplification of the paper's observation, not its method: filters are zero-mean Gaussian, and their
    covariance widens with depth.

    At relative depth t, sigma = s0 + v t + a t^2 / 2. For taps at p and q and the centre c: exp(-|p - q|^2 / (2
    sigma^2)) * w(p) w(q) - w(p) w(q) / 2, with w(p) = exp(-|p - c|^2 / (4 sigma^2)); negative eigenvalues are cut off,
    and the trace becomes k^2 * 2 / fan_in, that of He's distribution. Applies to square depthwise filters of side 5 and
    more.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings: the width over depth, in taps.

        Attributes:
            s0: width at the first layer.
            v: its slope.
            a: its curvature.
        """

        s0: float = 0.5
        v: float = 1.0
        a: float = 3.0

        def validate(self) -> None:
            if self.s0 <= 0 or min(self.v, self.a) < 0:
                raise ValueError(f"needs s0 > 0 and v, a >= 0, found {self.s0}, {self.v}, {self.a}")

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        layers = [
            layer
            for layer in model.executed
            if layer.is_depthwise and len(layer.shape) == 4 and MIN_SIDE <= layer.shape[2] == layer.shape[3]
        ]
        for index, layer in enumerate(layers):
            time = index / max(len(layers) - 1, 1)
            sigma = self.config.s0 + self.config.v * time + self.config.a * time**2 / 2
            root = covariance_root(filter_covariance(layer.shape[2], sigma))
            filters = self.normal((layer.shape[0], layer.window), layer.name) @ root
            yield Drawn(layer.name, f"filters of width {sigma:.3g}", layer.stored(filters.view(layer.shape)))


def filter_covariance(side: int, sigma: float) -> Tensor:
    """(side^2, side^2) float32, positive semi-definite, of trace 2."""
    places = torch.cartesian_prod(*2 * [torch.arange(side) - (side - 1) / 2])
    window = torch.exp(-places.square().sum(1) / (4 * sigma**2))
    near = torch.exp(-torch.cdist(places, places).square() / (2 * sigma**2))
    values, vectors = torch.linalg.eigh((near - 0.5) * torch.outer(window, window))
    values = values.clamp_min(0)
    return 2 * (vectors * values) @ vectors.mT / values.sum()


def covariance_root(covariance: Tensor) -> Tensor:
    """The symmetric square root: normal noise times it has the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
