"""Filled outlines given by signed distance functions, one function per class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.random import Generator

# Coordinates x and y run over [-1, 1] across the canvas before the pose is applied. A distance is negative inside.


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.8


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.65) - 0.17


def _polygon(x: np.ndarray, y: np.ndarray, num_sides: int) -> np.ndarray:
    sector = 2 * np.pi / num_sides
    return np.hypot(x, y) * np.cos((np.arctan2(y, x) + np.pi) % sector - sector / 2) - 0.62


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - (0.62 + 0.28 * np.cos(5 * np.arctan2(y, x)))


def _plus_sign(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.25, 0.85), _box(x, y, 0.85, 0.25))


def _bars(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bar = (np.abs((2.2 * y) % 1 - 0.5) - 0.22) / 2.2
    return np.maximum(bar, _box(x, y, 0.8, 0.8))


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


DISTANCES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    _disc,
    _ring,
    partial(_polygon, num_sides=3),
    partial(_polygon, num_sides=4),
    partial(_polygon, num_sides=5),
    _star,
    _plus_sign,
    _bars,
)


@dataclass(frozen=True, eq=False)
class Shapes:
    """C shape classes.

    Attributes:
        kinds: (C,) int64 index into `DISTANCES` of each class.
    """

    kinds: np.ndarray

    @classmethod
    def draw(cls, rng: Generator, num_classes: int) -> Self:
        """Choose shapes in random order; they repeat only after all of them have been used."""
        return cls(np.resize(rng.permutation(len(DISTANCES)), num_classes))

    def render(self, rng: Generator, rows: np.ndarray, size: int) -> np.ndarray:
        """Render one instance of each listed class in a random pose, with analytic anti-aliasing.

        Args:
            rng: Source of the poses.
            rows: (B,) int64 class of each image.
            size: S.

        Returns:
            (B, S, S) float32 in [0, 1].
        """
        x, y, scale = _posed_coordinates(rng, len(rows), size)
        kinds = self.kinds[rows]
        distance = np.empty_like(x)
        for kind in np.unique(kinds):
            members = kinds == kind
            distance[members] = DISTANCES[kind](x[members], y[members])
        pixel = 2 / size / scale
        return np.clip(0.5 - distance / pixel, 0, 1)


def _posed_coordinates(rng: Generator, num_images: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift, turn, scale and stretch the canvas at random; returns x, y (B, S, S) and scale (B, 1, 1), float32."""

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (num_images, 1, 1)).astype(np.float32)

    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x = axis[None, None, :] - uniform(-0.25, 0.25)
    y = axis[None, :, None] - uniform(-0.25, 0.25)
    turn = uniform(0, 2 * np.pi)
    scale = uniform(0.45, 0.8)
    stretch = uniform(0.75, 1.3)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    return (cos * x + sin * y) / stretch, cos * y - sin * x, scale
