"""Attractors of affine iterated function systems, one system per class (FractalDB, arXiv 2101.08515).

The singular values follow the sampler of "Improving Fractal Pre-training" (arXiv 2110.03091), instances perturb all
coefficients as in 1p-frac (arXiv 2408.00677).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.random import Generator

# Legend: M maps of a system (padded to MAX_MAPS), P chains of the chaos game, T steps that are kept.

MAX_MAPS = 4  # published sets go up to 7 or 8; small tables keep the gathers cheap
PERTURBATION = 0.1  # 0.05 to 0.2 transfer about equally well, 0.01 collapses (1p-frac, arXiv 2408.00677)
BURN_IN = 8  # steps before a point is close enough to the attractor to be drawn
COVERAGE_RANGE = (0.12, 0.95)  # part of the canvas that a usable attractor touches
COVERAGE_SIZE = 32  # side in pixels at which coverage is judged, so that a class is the same at every size


@dataclass(frozen=True, eq=False)
class Fractals:
    """C iterated function systems.

    Attributes:
        coefficients: (C, MAX_MAPS, 6) float32 rows (a, b, c, d, e, f) of x' = a x + b y + e, y' = c x + d y + f.
        thresholds: (C, MAX_MAPS - 1) float32 cumulative map probabilities; 1 from the last map on.
    """

    coefficients: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def draw(cls, rng: Generator, num_classes: int) -> Self:
        """Draw systems until `num_classes` of them cover a reasonable part of the canvas (about 98 % do)."""
        systems = cls(*_draw_systems(rng, num_classes))
        rejected = systems._rejected(rng, np.arange(num_classes))
        while rejected.size:
            systems.coefficients[rejected], systems.thresholds[rejected] = _draw_systems(rng, rejected.size)
            rejected = systems._rejected(rng, rejected)
        return systems

    def _rejected(self, rng: Generator, rows: np.ndarray) -> np.ndarray:
        if not rows.size:
            return rows
        coverage = (self.render(rng, rows, COVERAGE_SIZE, perturbation=0.0) > 0).mean(axis=(1, 2))
        low, high = COVERAGE_RANGE
        return rows[(coverage < low) | (coverage > high)]

    def render(self, rng: Generator, rows: np.ndarray, size: int, perturbation: float = PERTURBATION) -> np.ndarray:
        """Render one instance of each listed class: log density of the visited points.

        Args:
            rng: Source of the perturbation and of the chaos game.
            rows: (B,) int64 class of each image.
            size: S.
            perturbation: Every coefficient is multiplied by its own U(1 - perturbation, 1 + perturbation).

        Returns:
            (B, S, S) float32 in [0, 1].
        """
        coefficients = self.coefficients[rows]
        factors = rng.random(coefficients.shape, dtype=np.float32)
        coefficients = coefficients * (1 + perturbation * (2 * factors - 1))
        points = _play_chaos_game(
            rng, coefficients, self.thresholds[rows], num_chains=3 * size, num_steps=BURN_IN + size // 2
        )
        return _log_density(points, size)


def _draw_systems(rng: Generator, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw coefficients (C, MAX_MAPS, 6) and thresholds (C, MAX_MAPS - 1), both float32."""
    num_maps = rng.integers(2, MAX_MAPS, endpoint=True, size=num_classes)
    shape = (num_classes, MAX_MAPS)
    sigma = _draw_singular_values(rng, num_maps)
    signs = rng.choice([-1.0, 1.0], size=(2, *shape, 2))
    first = _rotation(rng.uniform(-np.pi, np.pi, shape)) * (signs[0] * sigma)[..., None, :]
    second = _rotation(rng.uniform(-np.pi, np.pi, shape)) * signs[1][..., None, :]
    linear = first @ second
    offset = rng.uniform(-1, 1, (*shape, 2))
    coefficients = np.concatenate([linear.reshape(*shape, 4), offset], axis=-1)

    weight = np.where(np.arange(MAX_MAPS) < num_maps[:, None], sigma.prod(axis=-1) + 1e-3, 0)
    thresholds = (weight.cumsum(axis=1) / weight.sum(axis=1, keepdims=True))[:, :-1]
    thresholds[np.arange(MAX_MAPS - 1) >= num_maps[:, None] - 1] = 1
    return coefficients.astype(np.float32), thresholds.astype(np.float32)


def _draw_singular_values(rng: Generator, num_maps: np.ndarray) -> np.ndarray:
    """Draw singular value pairs 1 >= s1 >= s2 >= 0 with sum(s1 + 2 s2) in [(5 + M) / 2, (6 + M) / 2].

    This total, the sigma factor of arXiv 2110.03091, decides how much of the plane the attractor fills.

    Args:
        rng: Source of the values.
        num_maps: (C,) int64 number of maps M of each system.

    Returns:
        (C, MAX_MAPS, 2) float64, zero for maps that a system does not have.
    """
    rest = rng.uniform((5 + num_maps) / 2, (6 + num_maps) / 2)
    sigma = np.zeros((len(num_maps), MAX_MAPS, 2))
    for i in range(MAX_MAPS):
        left = 3.0 * (num_maps - 1 - i)  # the most that the maps still to come can take
        last = left == 0
        larger = _uniform_between(rng, (rest - left) / 3, np.minimum(1, rest))
        smaller = _uniform_between(rng, (rest - larger - left) / 2, np.minimum(larger, (rest - larger) / 2))
        smaller_of_last = _uniform_between(rng, (rest - 1) / 2, rest / 3)
        smaller = np.where(last, smaller_of_last, smaller)
        larger = np.where(last, rest - 2 * smaller, larger)
        present = left >= 0
        sigma[present, i, 0], sigma[present, i, 1] = larger[present], smaller[present]
        rest = np.where(present, rest - larger - 2 * smaller, 0)
    return sigma


def _uniform_between(rng: Generator, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    low = np.maximum(0, low)
    return low + (high - low) * rng.random(low.shape)


def _rotation(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos, -sin, sin, cos], axis=-1).reshape(*angle.shape, 2, 2)


def _play_chaos_game(
    rng: Generator, coefficients: np.ndarray, thresholds: np.ndarray, num_chains: int, num_steps: int
) -> np.ndarray:
    """Iterate P independent chains per image, applying a random map of its system to each point.

    Args:
        rng: Source of start points and of the choice of maps.
        coefficients: (B, MAX_MAPS, 6) float32.
        thresholds: (B, MAX_MAPS - 1) float32.
        num_chains: P.
        num_steps: Steps of each chain; the first BURN_IN are dropped.

    Returns:
        (2, T, B, P) float32 coordinates x and y.
    """
    num_images = len(coefficients)
    table = coefficients.reshape(-1, 6)
    first_map = np.arange(num_images, dtype=np.intp)[:, None] * MAX_MAPS
    points = np.empty((2, num_steps - BURN_IN, num_images, num_chains), dtype=np.float32)
    x = np.zeros((num_images, num_chains), dtype=np.float32)
    y = np.float32(0.1) * rng.standard_normal(x.shape, dtype=np.float32)
    for step in range(num_steps):
        chance = rng.random(x.shape, dtype=np.float32)
        chosen = first_map + sum(chance > thresholds[:, j, None] for j in range(MAX_MAPS - 1))
        a, b, c, d, e, f = np.moveaxis(table.take(chosen, axis=0), -1, 0)
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= BURN_IN:
            points[0, step - BURN_IN], points[1, step - BURN_IN] = x, y
    return points


def _log_density(points: np.ndarray, size: int) -> np.ndarray:
    """Stretch each image's points (2, T, B, P) to the canvas and return log counts, (B, S, S) float32 in [0, 1]."""
    num_images = points.shape[2]
    low = points.min(axis=(1, 3), keepdims=True)
    extent = np.maximum(points.max(axis=(1, 3), keepdims=True) - low, 1e-6)
    column, row = ((points - low) * (np.float32(size - 1e-3) / extent)).astype(np.int32)
    image = np.arange(num_images, dtype=np.int32)[:, None]
    pixel = (image * size + row) * size + column
    counts = np.bincount(pixel.ravel(), minlength=num_images * size * size).reshape(num_images, size, size)
    density = np.log1p(counts.astype(np.float32))
    return density / density.max(axis=(1, 2), keepdims=True)
