"""The two linear maps that make weights of another size: across neurons (F) and across layers (G).

Axes: d neurons of the learngene, w of the net that is generated, c = w - d added ones. Weights are (out, in).

Where no gradient is wanted, products and sums are written to their place in the result, which saves the copies that
concatenation makes; the values are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixture:
    """A sum of tensors of equal shape, each times its coefficient, as G mixes layers.

    Attributes:
        coefficients: (n,).
        tensors: n of them.
    """

    coefficients: Tensor
    tensors: Sequence[Tensor]

    def sum(self) -> Tensor:
        """The sum; differentiable."""
        total = self.coefficients[0] * self.tensors[0]
        for coefficient, tensor in zip(self.coefficients[1:], self.tensors[1:], strict=True):
            total = total + coefficient * tensor
        return total

    def sum_into(self, place: Tensor) -> None:
        """Write the sum; no gradient."""
        torch.mul(self.tensors[0], self.coefficients[0], out=place)
        for coefficient, tensor in zip(self.coefficients[1:], self.tensors[1:], strict=True):
            place.addcmul_(tensor, coefficient)


@dataclass(frozen=True, slots=True)
class Expand:
    """E = [I; F] without the identity: the old neurons come first, every added one is a combination of them.

    Attributes:
        rows: (c, d) rows of F, one for each added neuron.
        kept: Number of old neurons that stay, from the first; below d the net is narrower and `rows` has no rows.
    """

    rows: Tensor
    kept: int

    def out(self, values: Tensor) -> Tensor:
        """E v or E W: (d, ...) to (w, ...)."""
        if not len(self.rows):
            return values[: self.kept]
        if values.dim() == 1:
            return torch.cat([values, self.rows @ values])
        if self._is_differentiable(values):
            return torch.cat([values, (self.rows @ values.flatten(1)).view(-1, *values.shape[1:])])
        whole = values.new_empty(self.kept + len(self.rows), *values.shape[1:])
        whole[: self.kept] = values
        return self._complete_rows(whole)

    def into(self, weight: Tensor) -> Tensor:
        """W E^T: (out, d) to (out, w)."""
        if not len(self.rows):
            return weight[:, : self.kept]
        if self._is_differentiable(weight):
            return torch.cat([weight, weight @ self.rows.T], dim=1)
        whole = weight.new_empty(len(weight), self.kept + len(self.rows))
        whole[:, : self.kept] = weight
        return self._complete_columns(whole)

    def out_of(self, mixture: Mixture) -> Tensor:
        """`out` of a sum."""
        first = mixture.tensors[0]
        if not len(self.rows) or first.dim() == 1 or self._is_differentiable(mixture.coefficients, *mixture.tensors):
            return self.out(mixture.sum())
        whole = first.new_empty(self.kept + len(self.rows), first.shape[1])
        mixture.sum_into(whole[: self.kept])
        return self._complete_rows(whole)

    def into_of(self, mixtures: Sequence[Mixture]) -> Tensor:
        """`into` of sums that stand below each other."""
        first = mixtures[0].tensors[0]
        if not len(self.rows) or self._is_differentiable(mixtures[0].coefficients, first):
            return self.into(torch.cat([mixture.sum() for mixture in mixtures]))
        whole = first.new_empty(len(mixtures) * len(first), self.kept + len(self.rows))
        for mixture, place in zip(mixtures, whole.chunk(len(mixtures)), strict=True):
            mixture.sum_into(place[:, : self.kept])
        return self._complete_columns(whole)

    def _complete_rows(self, whole: Tensor) -> Tensor:
        """Write the rows of the added neurons below those of the old ones."""
        flat = whole.flatten(1)
        torch.mm(self.rows, flat[: self.kept], out=flat[self.kept :])
        return whole

    def _complete_columns(self, whole: Tensor) -> Tensor:
        """Write the columns of the added neurons beside those of the old ones."""
        torch.mm(whole[:, : self.kept], self.rows.T, out=whole[:, self.kept :])
        return whole

    def _is_differentiable(self, *tensors: Tensor) -> bool:
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (self.rows, *tensors))
