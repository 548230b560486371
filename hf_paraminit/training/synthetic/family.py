"""What a family of formula-driven images must bring."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
from numpy.random import Generator

# Legend of this package: C classes, B images of a batch, S image side in pixels.


class Family(Protocol):
    """Classes of one kind of image: C parameter rows, from which any number of instances can be rendered."""

    @classmethod
    def draw(cls, rng: Generator, num_classes: int) -> Self:
        """Draw the parameters of `num_classes` classes."""

    def render(self, rng: Generator, rows: np.ndarray, size: int) -> np.ndarray:
        """Render one instance of each listed class.

        Args:
            rng: Source of everything in which instances of a class differ.
            rows: (B,) int64 class of each image, in 0..C-1, B at least 1.
            size: S.

        Returns:
            (B, S, S) float32 in [0, 1], figure bright on dark ground.
        """
