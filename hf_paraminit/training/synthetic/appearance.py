"""From grey renderings to training images: flips, colours, pixel noise."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

MIN_CONTRAST = 0.35  # least difference of figure and ground in the channel that differs most
WHITE_ON_BLACK_FRACTION = 0.25
BACKGROUND_WEIGHT = np.float32(0.25)
NOISE_STD = np.float32(0.02)


def flip(rng: Generator, images: np.ndarray) -> None:
    """Mirror a random half of the (B, S, S) images left to right, and a random half upside down, in place."""
    mirrored, upside_down = rng.random((2, len(images))) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    images[upside_down] = images[upside_down, ::-1]


def colorize(rng: Generator, images: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    """Paint figure and ground of each image in two random colours.

    Args:
        rng: Source of the colours.
        images: (B, S, S) float32 in [0, 1]: 1 is figure, 0 is ground.
        background: (B, S, S) float32 in [0, 1] texture that is mixed into the ground, or None for a plain one.

    Returns:
        (B, 3, S, S) float32 in [0, 1].
    """
    figure, ground = (colors[:, :, None, None] for colors in _draw_colors(rng, len(images)))
    if background is not None:
        ground = ground + BACKGROUND_WEIGHT * (background[:, None] - ground)
    return ground + (figure - ground) * images[:, None]


def _draw_colors(rng: Generator, num_images: int) -> np.ndarray:
    """Figure and ground colours, (2, B, 3) float32; some pairs are white on black, as digits often are."""
    colors = rng.random((2, num_images, 3), dtype=np.float32)
    figure, ground = colors
    faint = np.flatnonzero(np.abs(figure - ground).max(axis=1) < MIN_CONTRAST)
    channel = rng.integers(3, size=len(faint))
    figure[faint, channel] = (ground[faint, channel] + np.float32(0.5)) % 1

    plain = rng.random(num_images) < WHITE_ON_BLACK_FRACTION
    figure[plain], ground[plain] = 1, 0
    return colors


def add_pixel_noise(rng: Generator, images: np.ndarray) -> None:
    """Add Gaussian noise to float32 images in place, and clip to [0, 1]."""
    images += NOISE_STD * rng.standard_normal(images.shape, dtype=np.float32)
    np.clip(images, 0, 1, out=images)
