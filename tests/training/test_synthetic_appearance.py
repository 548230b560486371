"""Colours, flips and pixel noise of the synthetic images."""

import numpy as np
from numpy.random import PCG64, Generator

from hf_paraminit.training.synthetic.appearance import MIN_CONTRAST, add_pixel_noise, colorize, flip


def generator(seed: int = 0) -> Generator:
    return Generator(PCG64(seed))


def test_figure_and_ground_always_contrast() -> None:
    steps = np.tile(np.array([[0, 1]], dtype=np.float32), (4000, 1, 1))  # one pixel of ground, one of figure
    ground, figure = np.moveaxis(colorize(generator(), steps)[:, :, 0], -1, 0)
    assert np.abs(figure - ground).max(axis=1).min() >= MIN_CONTRAST
    white_on_black = (ground == 0).all(axis=1) & (figure == 1).all(axis=1)
    assert abs(white_on_black.mean() - 0.25) < 0.03
    # The other pairs have no preferred polarity.
    brighter = (figure.mean(axis=1) > ground.mean(axis=1))[~white_on_black]
    assert abs(brighter.mean() - 0.5) < 0.03


def test_gray_levels_mix_the_two_colors() -> None:
    ramp = np.array([[[0, 0.5, 1]]], dtype=np.float32)
    dark, middle, bright = np.moveaxis(colorize(generator(), ramp)[0, :, 0], -1, 0)
    assert np.allclose(middle, (dark + bright) / 2)


def test_background_texture_takes_a_quarter_of_the_ground_and_none_of_the_figure() -> None:
    images = np.tile(np.array([[0, 0, 1]], dtype=np.float32), (50, 1, 1))
    texture = np.tile(np.array([[0, 1, 1]], dtype=np.float32), (50, 1, 1))
    plain, textured = colorize(generator(), images), colorize(generator(), images, texture)
    assert np.allclose(textured[..., 0], 0.75 * plain[..., 0])
    assert np.allclose(textured[..., 1], 0.75 * plain[..., 1] + 0.25)
    assert np.allclose(textured[..., 2], plain[..., 2])


def test_flips_are_independent_and_each_takes_half() -> None:
    original = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    images = np.repeat(original, 4000, axis=0)
    flip(generator(), images)
    patterns, counts = np.unique(images.reshape(4000, 4), axis=0, return_counts=True)
    assert patterns.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_pixel_noise_is_small_and_clipped() -> None:
    images = np.full((100, 3, 32, 32), 0.5, dtype=np.float32)
    images[:, :, 0] = 1
    add_pixel_noise(generator(), images)
    assert abs(images[:, :, 1:].std() - 0.02) < 0.001
    assert images.max() == 1
