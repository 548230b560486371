"""Oriented power-law noise, gratings and checkers, one spectrum and wave per class (compare arXiv 2106.05963)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.random import Generator

NOISE, GRATING, CHECKER = range(3)
NOISE_WEIGHT = np.array([1.0, 0.6, 0.4], dtype=np.float32)  # by kind; the wave takes WAVE_WEIGHT
WAVE_WEIGHT = np.float32(1.4)
ORIENTATION_JITTER = 0.12  # standard deviation in radians
CONTRAST = np.float32(1.5)


@dataclass(frozen=True, eq=False)
class Textures:
    """C texture classes; every array is (C,).

    Attributes:
        kind: NOISE, GRATING or CHECKER.
        exponent: Amplitude falls with spatial frequency to this power.
        orientation: Direction of the wave, in radians.
        anisotropy: How much faster the amplitude falls across the orientation than along it; 1 is isotropic.
        wave_number: Angular frequency of grating and checker, in radians per pixel.
    """

    kind: np.ndarray
    exponent: np.ndarray
    orientation: np.ndarray
    anisotropy: np.ndarray
    wave_number: np.ndarray

    @classmethod
    def draw(cls, rng: Generator, num_classes: int) -> Self:
        """Draw every parameter uniformly from its range."""
        return cls(
            kind=rng.integers(3, size=num_classes),
            exponent=rng.uniform(0.5, 2.5, num_classes).astype(np.float32),
            orientation=rng.uniform(0, np.pi, num_classes).astype(np.float32),
            anisotropy=rng.choice(np.array([1, 1, 3, 6], dtype=np.float32), num_classes),
            wave_number=rng.uniform(0.3, 1.6, num_classes).astype(np.float32),
        )

    def render(self, rng: Generator, rows: np.ndarray, size: int) -> np.ndarray:
        """Render one instance of each listed class.

        Args:
            rng: Source of noise phases, wave phases and orientation jitter.
            rows: (B,) int64 class of each image.
            size: S.

        Returns:
            (B, S, S) float32 in [0, 1].
        """
        jitter = ORIENTATION_JITTER * rng.standard_normal(len(rows), dtype=np.float32)
        orientation = self.orientation[rows] + jitter
        kind = self.kind[rows]
        image = self._noise(rng, rows, orientation, size)
        image *= NOISE_WEIGHT[kind][:, None, None]
        for wave_kind, wave in ((GRATING, _grating), (CHECKER, _checker)):
            members = np.flatnonzero(kind == wave_kind)
            phase = rng.uniform(0, 2 * np.pi, (2, len(members), 1, 1)).astype(np.float32)
            along, across = _rotated_grid(orientation[members], np.arange(size), np.arange(size))
            wave_number = self.wave_number[rows[members]][:, None, None]
            image[members] += WAVE_WEIGHT * wave(wave_number * along + phase[0], wave_number * across + phase[1])
        return 1 / (1 + np.exp(-CONTRAST * image))

    def _noise(self, rng: Generator, rows: np.ndarray, orientation: np.ndarray, size: int) -> np.ndarray:
        """Noise with the classes' spectra, (B, S, S) float32, zero mean and unit variance per image."""
        along, across = _rotated_grid(orientation, np.fft.rfftfreq(size), np.fft.fftfreq(size))
        stretch, exponent = self.anisotropy[rows][:, None, None], self.exponent[rows][:, None, None]
        power = along**2 + (stretch * across) ** 2 + np.float32(size**-2)
        amplitude = np.exp(-0.5 * exponent * np.log(power))
        phase = np.float32(2 * np.pi) * rng.random(amplitude.shape, dtype=np.float32)
        spectrum = np.empty(amplitude.shape, dtype=np.complex64)
        spectrum.real, spectrum.imag = amplitude * np.cos(phase), amplitude * np.sin(phase)
        noise = np.fft.irfft2(spectrum, s=(size, size))
        noise -= noise.mean(axis=(1, 2), keepdims=True)
        return noise / noise.std(axis=(1, 2), keepdims=True)


def _grating(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    return np.sin(along)


def _checker(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(along) * np.sin(across))


def _rotated_grid(orientation: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across each (B,) orientation at columns `x` and rows `y`, both (B, len(y), len(x))."""
    cos, sin = np.cos(orientation)[:, None, None], np.sin(orientation)[:, None, None]
    x, y = x.astype(np.float32)[None, None, :], y.astype(np.float32)[None, :, None]
    return cos * x + sin * y, cos * y - sin * x
