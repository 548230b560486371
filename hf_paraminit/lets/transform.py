"""The two linear maps that make weights of another size: across neurons (F) and across layers (G).

Axes: d neurons of the learngene, w of the net that is generated, c = w - d added ones. Weights are (out, in).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        kept = values[: self.kept]
        if not len(self.rows):
            return kept
        added = self.rows @ values.flatten(1) if values.dim() > 1 else self.rows @ values
        return torch.cat([kept, added.view(-1, *values.shape[1:])])

    def into(self, weight: Tensor) -> Tensor:
        """W E^T: (out, d) to (out, w)."""
        kept = weight[:, : self.kept]
        return torch.cat([kept, weight @ self.rows.T], dim=1) if len(self.rows) else kept


def mix(coefficients: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of equal shape, each times its coefficient, as G mixes layers.

    Args:
        coefficients: (n,).
        tensors: n of them.
    """
    total = coefficients[0] * tensors[0]
    for coefficient, tensor in zip(coefficients[1:], tensors[1:], strict=True):
        total = total + coefficient * tensor
    return total
