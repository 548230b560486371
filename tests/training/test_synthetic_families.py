"""The four families of synthetic images: the laws of their class parameters and of their renderings."""

import numpy as np
import pytest
from numpy.random import PCG64, Generator

from hf_paraminit.training.synthetic.contours import NUM_FREQUENCIES, ORBIT_RANGE, VERTEX_RANGE, Contours
from hf_paraminit.training.synthetic.family import Family
from hf_paraminit.training.synthetic.fractals import COVERAGE_RANGE, MAX_MAPS, Fractals
from hf_paraminit.training.synthetic.shapes import DISTANCES, Shapes
from hf_paraminit.training.synthetic.textures import CHECKER, GRATING, NOISE, Textures

FAMILIES = [Fractals, Contours, Shapes, Textures]


def generator(seed: int) -> Generator:
    return Generator(PCG64(seed))


def mean_correlation(first: np.ndarray, second: np.ndarray) -> float:
    pairs = zip(first.reshape(len(first), -1), second.reshape(len(second), -1), strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_renderings_are_gray_images_of_the_asked_size(family: type[Family], size: int) -> None:
    rows = np.array([3, 0, 3, 7, 1])
    images = family.draw(generator(0), 8).render(generator(1), rows, size)
    assert images.shape == (5, size, size)
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.std(axis=(1, 2)) > 0.02).all()
    assert not np.array_equal(images[0], images[2])  # two instances of class 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_is_recognizable_at_either_size(family: type[Family]) -> None:
    """Mean brightness of a class at 32 and 64 pixels, over many instances, goes together across classes."""
    num_classes, instances = 8, 40
    classes = family.draw(generator(5), num_classes)
    rows = np.repeat(np.arange(num_classes), instances)
    small, large = (
        np.abs(classes.render(generator(6), rows, size) - 0.5).mean(axis=(1, 2)).reshape(num_classes, -1).mean(axis=1)
        for size in (32, 64)
    )
    assert np.corrcoef(small, large)[0, 1] > 0.8


def test_fractal_systems_keep_the_sigma_factor() -> None:
    fractals = Fractals.draw(generator(0), 256)
    linear = fractals.coefficients[..., :4].reshape(256, MAX_MAPS, 2, 2).astype(np.float64)
    larger, smaller = np.moveaxis(np.linalg.svd(linear, compute_uv=False), -1, 0)
    num_maps = (larger > 0).sum(axis=1)
    factor = (larger + 2 * smaller).sum(axis=1)
    assert set(num_maps) == {2, 3, 4}
    assert larger.max() <= 1 + 1e-6
    assert (factor >= (5 + num_maps) / 2 - 1e-5).all()
    assert (factor <= (6 + num_maps) / 2 + 1e-5).all()


def test_fractal_map_probabilities_follow_the_determinants() -> None:
    fractals = Fractals.draw(generator(1), 64)
    a, b, c, d = np.moveaxis(fractals.coefficients[..., :4].astype(np.float64), -1, 0)
    present = np.abs(fractals.coefficients).sum(axis=-1) > 0
    present &= (np.abs(a) + np.abs(b) + np.abs(c) + np.abs(d)) > 0
    weight = np.where(present, np.abs(a * d - b * c) + 1e-3, 0)
    expected = weight / weight.sum(axis=1, keepdims=True)
    probability = np.diff(fractals.thresholds.astype(np.float64), axis=1, prepend=0, append=1)
    assert np.allclose(probability, expected, atol=1e-5)
    assert np.array_equal(probability > 0, present)


def test_fractals_cover_a_reasonable_part_of_the_canvas() -> None:
    fractals = Fractals.draw(generator(2), 256)
    images = fractals.render(generator(3), np.arange(256), 32, perturbation=0)
    coverage = (images > 0).mean(axis=(1, 2))
    low, high = COVERAGE_RANGE
    # The chaos game differs from the one that the classes were accepted by, so a few may fall just outside.
    assert ((coverage > low) & (coverage < high)).mean() > 0.98
    assert ((coverage > 0.8 * low) & (coverage < 1)).all()
    assert np.allclose(images.max(axis=(1, 2)), 1)


def test_fractal_instances_differ_by_the_perturbation() -> None:
    fractals = Fractals.draw(generator(4), 64)

    def correlation(perturbation: float) -> float:
        first, second = (fractals.render(generator(seed), np.arange(64), 32, perturbation) for seed in (5, 6))
        return mean_correlation(first, second)

    only_chaos_game = correlation(0.0)
    assert only_chaos_game >= 0.75
    assert only_chaos_game > correlation(0.05) + 0.05 > correlation(0.1) + 0.1
    assert correlation(0.1) > 0.3


def test_fractal_with_known_attractor() -> None:
    """Three maps toward three corners, each halving distances: the Sierpinski triangle leaves its centre empty."""
    corners = np.array([[0, 0], [1, 0], [0, 1], [0, 0]]) / 2
    coefficients = np.tile([0.5, 0, 0, 0.5, 0, 0], (1, MAX_MAPS, 1)).astype(np.float32)
    coefficients[0, :, 4:] = corners
    fractals = Fractals(coefficients=coefficients, thresholds=np.array([[1 / 3, 2 / 3, 1]], dtype=np.float32))
    image = fractals.render(generator(0), np.array([0]), 64, perturbation=0)[0]
    row, column = np.mgrid[:64, :64]
    assert image[row + column > 65].max() == 0  # above the diagonal
    assert image[(row < 31) & (column < 31) & (row + column > 33)].max() == 0  # the middle triangle
    assert (image[0] > 0).mean() > 0.9  # an edge is covered


def test_contour_parameters_stay_in_range() -> None:
    contours = Contours.draw(generator(0), 2000)
    first, second = contours.frequencies.T
    assert contours.frequencies.min() == 0
    assert contours.frequencies.max() == NUM_FREQUENCIES - 1
    assert ((first != second) | (first == 0)).all()
    assert (contours.num_orbits.min(), contours.num_orbits.max()) == ORBIT_RANGE
    assert (contours.num_vertices.min(), contours.num_vertices.max()) == VERTEX_RANGE


def smooth_contour(frequency: int, num_orbits: int) -> Contours:
    return Contours(
        frequencies=np.array([[frequency, frequency]]),
        num_orbits=np.array([num_orbits]),
        num_vertices=np.array([200]),
        jitter=np.zeros(1, dtype=np.float32),
        start_radius=np.full(1, 0.1, dtype=np.float32),
        ovality=np.ones((1, 2), dtype=np.float32),
        width_step=np.zeros(1, dtype=np.float32),
    )


def test_smooth_contours_without_waves_are_circles() -> None:
    image = smooth_contour(frequency=0, num_orbits=3).render(generator(0), np.array([0]), 64)[0]
    row, column = np.nonzero(image)
    distance = np.hypot(row - (row.min() + row.max()) / 2, column - (column.min() + column.max()) / 2) / 64
    # Three orbits: 0.1 plus one to three gaps of 0.018; a pixel's diagonal is 0.022.
    assert distance.min() > 0.118 - 0.022
    assert distance.max() < 0.154 + 0.022


def test_contour_waves_are_counted_around_the_centre() -> None:
    image = smooth_contour(frequency=5, num_orbits=8).render(generator(0), np.array([0]), 128)[0]
    row, column = np.nonzero(image)
    y, x = row - row.mean(), column - column.mean()
    sector = ((np.arctan2(y, x) + np.pi) / (2 * np.pi) * 60).astype(int) % 60
    reach = np.array([np.hypot(y, x)[sector == i].max() for i in range(60)])
    spectrum = np.abs(np.fft.rfft(reach - reach.mean()))
    assert spectrum.argmax() == 5


def test_contours_do_not_depend_on_the_order_of_the_batch_for_their_class() -> None:
    """Few-orbit classes stay few-orbit wherever they stand: ragged columns are put back in place."""
    contours = Contours.draw(generator(7), 16)
    rows = np.tile(np.arange(16), 30)
    brightness = contours.render(generator(8), rows, 32).mean(axis=(1, 2))
    backward = contours.render(generator(9), rows[::-1].copy(), 32).mean(axis=(1, 2))[::-1]
    by_class, by_class_backward = (values.reshape(30, 16).mean(axis=0) for values in (brightness, backward))
    assert np.corrcoef(by_class, by_class_backward)[0, 1] > 0.95


def test_shapes_repeat_only_after_all_have_been_used() -> None:
    assert sorted(Shapes.draw(generator(0), 8).kinds) == list(range(8))
    assert len(set(Shapes.draw(generator(1), 4).kinds)) == 4
    assert not np.array_equal(Shapes.draw(generator(0), 8).kinds, Shapes.draw(generator(1), 8).kinds)


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        (0, np.pi * 0.8**2),
        (1, np.pi * (0.82**2 - 0.48**2)),
        (2, 3 * 0.62**2 * np.tan(np.pi / 3)),
        (3, 4 * 0.62**2),
        (4, 5 * 0.62**2 * np.tan(np.pi / 5)),
        (5, np.pi * (0.62**2 + 0.28**2 / 2)),
        (6, 2 * 0.5 * 1.7 - 0.5**2),
    ],
)
def test_distances_enclose_the_right_area(kind: int, area: float) -> None:
    axis = (np.arange(800) + 0.5) / 800 * 3 - 1.5
    inside = DISTANCES[kind](axis[None, :], axis[:, None]) < 0
    assert inside.mean() * 9 == pytest.approx(area, rel=0.01)


def test_bars_are_four_and_straight() -> None:
    axis = (np.arange(800) + 0.5) / 800 * 2 - 1
    inside = DISTANCES[7](axis[None, :], axis[:, None]) < 0
    column = inside[:, 400].astype(int)
    assert (np.diff(column, prepend=0) == 1).sum() == 4
    assert np.array_equal(inside[:, 100], inside[:, 700])
    assert not inside[np.abs(axis) > 0.8].any()


def test_shape_edges_are_anti_aliased_over_about_one_pixel() -> None:
    images = Shapes(kinds=np.array([0])).render(generator(0), np.zeros(50, dtype=np.int64), 64)
    partial = ((images > 0) & (images < 1)).sum(axis=(1, 2))
    circumference = 2 * np.sqrt(np.pi * images.sum(axis=(1, 2)))
    assert np.median(partial / circumference) == pytest.approx(1.27, abs=0.35)  # 4 / pi for a one pixel wide ramp


def texture(kind: int, *, exponent: float = 1.0, orientation: float = 0.0, anisotropy: float = 1.0) -> Textures:
    return Textures(
        kind=np.array([kind]),
        exponent=np.array([exponent], dtype=np.float32),
        orientation=np.array([orientation], dtype=np.float32),
        anisotropy=np.array([anisotropy], dtype=np.float32),
        wave_number=np.array([2 * np.pi * 8 / 64], dtype=np.float32),
    )


def mean_power(textures: Textures) -> np.ndarray:
    """Power spectrum (64, 33) of the pre-images under the sigmoid, averaged over 64 instances."""
    images = textures.render(generator(0), np.zeros(64, dtype=np.int64), 64).astype(np.float64)
    field = np.log(images / (1 - images)) / 1.5
    return (np.abs(np.fft.rfft2(field)) ** 2).mean(axis=0)


@pytest.mark.parametrize("exponent", [0.5, 1.5, 2.5])
def test_noise_has_the_spectrum_of_its_class(exponent: float) -> None:
    power = mean_power(texture(NOISE, exponent=exponent))
    frequency = np.arange(4, 29)
    slope = np.polyfit(np.log(frequency), np.log(power[0, frequency]), 1)[0]
    assert slope == pytest.approx(-2 * exponent, abs=0.1)


def test_anisotropic_noise_varies_along_its_orientation() -> None:
    power = mean_power(texture(NOISE, exponent=2.0, anisotropy=6.0))
    assert power[0, 8] > 20 * power[8, 0]
    turned = mean_power(texture(NOISE, exponent=2.0, anisotropy=6.0, orientation=np.pi / 2))
    assert turned[8, 0] > 20 * turned[0, 8]


def test_grating_and_checker_show_their_wave_number() -> None:
    grating, checker, noise = (mean_power(texture(kind)) for kind in (GRATING, CHECKER, NOISE))
    # The orientation jitter moves the peak by about a bin across the wave and hardly along it.
    assert grating[[-1, 0, 1], 8].sum() > 5 * noise[[-1, 0, 1], 8].sum()
    assert checker[7:10, 7:10].sum() > 5 * noise[7:10, 7:10].sum()
    assert grating[7:10, 7:10].sum() < 0.2 * checker[7:10, 7:10].sum()


def test_texture_kinds_all_occur() -> None:
    assert set(Textures.draw(generator(0), 56).kind) == {NOISE, GRATING, CHECKER}
