"""Concentric sinusoidal contours, one set of frequencies and widths per class (VisualAtom, arXiv 2303.01112)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.random import Generator

# Legend: K orbits of an image, V vertices of an orbit, N = sum of V over the images (ragged columns side by side).
# Lengths are in units of the canvas side. The ranges are the published ones for 512 pixels, scaled to small images.

NUM_FREQUENCIES = 21
ORBIT_RANGE = (3, 24)  # fewer than three orbits leave nearly empty images
VERTEX_RANGE = (48, 200)  # at 32 pixels; in proportion to the side at others
ORBIT_GAP = 0.018
JITTER_SCALE = 0.012
WIDTH_UNIT = 64  # the line width grows in pixels of the drawing canvas of a 32 pixel image
DOTS_PER_SEGMENT = 4
SUPERSAMPLING = 2


@dataclass(frozen=True, eq=False)
class Contours:
    """C contour classes; every array has one entry per class.

    Attributes:
        frequencies: (C, 2) int64 waves around the orbit; different unless both are zero.
        num_orbits: (C,) int64, K.
        num_vertices: (C,) int64, V at 32 pixels.
        jitter: (C,) float32 in [0, 1], roughness of the orbits.
        start_radius: (C,) float32.
        ovality: (C, 2) float32 stretch along x and y.
        width_step: (C,) float32 growth of the line width from orbit to orbit, in drawing pixels at 32 pixels.
    """

    frequencies: np.ndarray
    num_orbits: np.ndarray
    num_vertices: np.ndarray
    jitter: np.ndarray
    start_radius: np.ndarray
    ovality: np.ndarray
    width_step: np.ndarray

    @classmethod
    def draw(cls, rng: Generator, num_classes: int) -> Self:
        """Draw every parameter uniformly from its range."""
        first, second = rng.integers(NUM_FREQUENCIES, size=(2, num_classes))
        shift = rng.integers(1, NUM_FREQUENCIES, size=num_classes)
        second = np.where((first == second) & (first > 0), (second + shift) % NUM_FREQUENCIES, second)
        return cls(
            frequencies=np.stack([first, second], axis=1),
            num_orbits=rng.integers(*ORBIT_RANGE, endpoint=True, size=num_classes),
            num_vertices=rng.integers(*VERTEX_RANGE, endpoint=True, size=num_classes),
            jitter=rng.random(num_classes, dtype=np.float32),
            start_radius=rng.uniform(0.06, 0.16, num_classes).astype(np.float32),
            ovality=rng.uniform(1, 2, (num_classes, 2)).astype(np.float32),
            width_step=rng.uniform(0, 0.1, num_classes).astype(np.float32),
        )

    def render(self, rng: Generator, rows: np.ndarray, size: int) -> np.ndarray:
        """Render one instance of each listed class.

        Args:
            rng: Source of centres, grey levels and jitter.
            rows: (B,) int64 class of each image.
            size: S.

        Returns:
            (B, S, S) float32 in [0, 1].
        """
        # With the longest images first, those that still grow at orbit k are a prefix of the ragged columns.
        order = np.argsort(-self.num_orbits[rows], kind="stable")
        canvas = np.empty((len(rows), size, size), dtype=np.float32)
        canvas[order] = _average_pool(self._draw_orbits(rng, rows[order], size))
        return canvas

    def _draw_orbits(self, rng: Generator, rows: np.ndarray, size: int) -> np.ndarray:
        """Draw the orbits of classes `rows` (most orbits first) on an empty (B, side, side) float32 canvas."""
        side = SUPERSAMPLING * size
        num_orbits = self.num_orbits[rows]
        num_vertices = self.num_vertices[rows] * size // 32
        image, vertex, following = _ragged_vertices(num_vertices)
        # An orbit is drawn as DOTS_PER_SEGMENT dots from each vertex on, alternately on its inner and outer edge.
        dot = np.arange(DOTS_PER_SEGMENT, dtype=np.float32)
        toward_following = dot / DOTS_PER_SEGMENT
        edge = (-1) ** dot

        turn = np.float32(2 * np.pi) / num_vertices[image].astype(np.float32)
        vertex_angle = turn * vertex.astype(np.float32)
        frequency = self.frequencies[rows].astype(np.float32)[image]
        growth = ORBIT_GAP * (1 + 0.5 * np.sin(frequency.T * vertex_angle).sum(axis=0))
        roughness = (JITTER_SCALE * self.jitter[rows])[image]
        half_width = (self.width_step[rows] / (2 * WIDTH_UNIT))[image]
        # Rows of the next two arrays are the y and x axes, in drawing pixels.
        angle = vertex_angle[:, None] + turn[:, None] * toward_following
        direction = side * self.ovality[rows].T[::-1, image, None] * np.stack([np.sin(angle), np.cos(angle)])
        center = side * rng.uniform(0.3, 0.7, (2, len(rows), 1)).astype(np.float32)[:, image]
        levels = rng.uniform(0.15, 1, (num_orbits[0], len(rows), 1)).astype(np.float32)

        ends = num_vertices.cumsum()
        canvas = np.zeros(len(rows) * side * side, dtype=np.float32)
        corner = image[:, None] * (side * side)
        radius = self.start_radius[rows][image]
        for k in range(num_orbits[0]):
            n = ends[np.count_nonzero(num_orbits > k) - 1]
            radius[:n] += growth[:n] + roughness[:n] * rng.standard_normal(n, dtype=np.float32)
            slope = (radius[following[:n]] - radius[:n])[:, None]
            line = radius[:n, None] + slope * toward_following + (k * half_width[:n])[:, None] * edge
            y, x = center[:, :n] + line * direction[:, :n]
            inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
            pixel = corner[:n] + side * y.astype(np.int32) + x.astype(np.int32)
            level = np.broadcast_to(levels[k, image[:n]], inside.shape)
            canvas[pixel[inside]] = level[inside]
        return canvas.reshape(len(rows), side, side)


def _ragged_vertices(num_vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay (B,) int64 closed polygons side by side; returns image, position in the orbit, next column, each (N,)."""
    starts = num_vertices.cumsum() - num_vertices
    image = np.repeat(np.arange(len(num_vertices)), num_vertices)
    column = np.arange(len(image))
    vertex = column - starts[image]
    following = np.where(vertex + 1 == num_vertices[image], starts[image], column + 1)
    return image, vertex, following


def _average_pool(canvas: np.ndarray) -> np.ndarray:
    num_images, side, _ = canvas.shape
    size = side // SUPERSAMPLING
    return canvas.reshape(num_images, size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(2, 4))
