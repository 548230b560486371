"""The mixture of all families: a specification, and the batches it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.random import PCG64, Generator, SeedSequence
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.synthetic import appearance
from hf_paraminit.training.synthetic.contours import Contours
from hf_paraminit.training.synthetic.family import Family
from hf_paraminit.training.synthetic.fractals import Fractals
from hf_paraminit.training.synthetic.shapes import DISTANCES, Shapes
from hf_paraminit.training.synthetic.textures import Textures

Split = Literal["train", "validation", "novel"]
SPLITS: tuple[Split, ...] = get_args(Split)

FAMILIES: dict[str, type[Family]] = {
    "fractals": Fractals,
    "contours": Contours,
    "shapes": Shapes,
    "textures": Textures,
}
SHAPES_INDEX = list(FAMILIES).index("shapes")
PRESETS: dict[str, tuple[int, ...]] = {"tiny": (4, 2, 2, 2), "base": (128, 64, 8, 56)}
VERSION = "1"

CHANNEL_MEAN, CHANNEL_STD = 0.5, 0.25

MAX_WORD = 2**32 - 1  # seed sequences are built from 32-bit words
CLASS_STREAM = len(SPLITS)  # second word of the seed sequence: the index of the split for batches, this for classes


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """Everything that decides what the images look like; equal specs give equal images.

    Attributes:
        seed: Seed of the class parameters and of all batches, in 0..2**32-1. Another seed is another task.
        size: Image side in pixels, a multiple of 8 in 16..128.
        preset: "tiny" (10 classes), "base" (256 classes), or the class counts of (fractals, contours, shapes,
            textures); at most 8 shapes.
        grayscale: Whether images have one channel, bright on dark, instead of three with random colours.
        textured_background: Whether noise textures are mixed into the ground; colour only.
        version: Version of the recipes; only "1" exists.

    Raises:
        TrainingConfigError: A value outside these ranges, or of another type.
    """

    seed: int = 0
    size: int = 32
    preset: str | tuple[int, ...] = "tiny"
    grayscale: bool = False
    textured_background: bool = False
    version: str = VERSION

    def __post_init__(self) -> None:
        if isinstance(self.preset, list):  # JSON has no tuples
            object.__setattr__(self, "preset", tuple(self.preset))
        faults = list(self._faults())
        if faults:
            raise TrainingConfigError(f"cannot specify synthetic images: {'; '.join(faults)}")

    def _faults(self) -> Iterator[str]:
        if not _is_int_within(self.seed, 0, MAX_WORD):
            yield f"seed must be an int in 0..{MAX_WORD}, got {self.seed!r}"
        if not _is_int_within(self.size, 16, 128) or self.size % 8:
            yield f"size must be a multiple of 8 in 16..128, got {self.size!r}"
        yield from self._preset_faults()
        for name in ("grayscale", "textured_background"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be True or False, got {getattr(self, name)!r}"
        if self.grayscale is True and self.textured_background is True:
            yield "textured_background needs colours: set grayscale=False"
        if self.version != VERSION:
            yield f"version must be {VERSION!r} in this release, got {self.version!r}"

    def _preset_faults(self) -> Iterator[str]:
        if isinstance(self.preset, str):
            if self.preset not in PRESETS:
                yield f"preset must be one of {', '.join(PRESETS)}, or a tuple of class counts, got {self.preset!r}"
        elif (
            not isinstance(self.preset, tuple)
            or len(self.preset) != len(FAMILIES)
            or not all(_is_int_within(count, 0, MAX_WORD) for count in self.preset)
        ):
            yield f"preset must hold {len(FAMILIES)} class counts ({', '.join(FAMILIES)}), got {self.preset!r}"
        elif sum(self.preset) < 2:
            yield f"preset must give at least 2 classes in all, got {self.preset!r}"
        elif self.preset[SHAPES_INDEX] > len(DISTANCES):
            yield f"preset asks for {self.preset[SHAPES_INDEX]} shapes, but only {len(DISTANCES)} exist"

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of classes of each family, in the order of `FAMILIES`."""
        return PRESETS[self.preset] if isinstance(self.preset, str) else self.preset


class SyntheticImages:
    """Labelled images of a specification, by the batch.

    A batch depends on its arguments and the specification alone, so workers and resumed runs can start anywhere.
    Classes are numbered family by family. Training and validation show other instances of the same classes; the
    classes of the novel split have other parameters (with 5 shapes or more, some of these occur in both).

    Args:
        spec: What to generate.

    Attributes:
        spec: The specification.
        num_classes: Number of classes of each split.
    """

    def __init__(self, spec: SyntheticSpec) -> None:
        self.spec = spec
        self.num_classes = sum(spec.class_counts)
        # The first half of each family's rows are the known classes, the second half are the novel ones.
        self._families = [
            family.draw(_generator(spec.seed, CLASS_STREAM, index), 2 * count)
            for index, (family, count) in enumerate(zip(FAMILIES.values(), spec.class_counts, strict=True))
        ]

    def batch(self, split: Split, batch_index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Make one batch.

        Args:
            split: "train", "validation" or "novel".
            batch_index: Number of the batch, in 0..2**32-1.
            batch_size: B; another batch size gives other images.

        Returns:
            images: (B, 3, S, S) float32 in [0, 1], (B, 1, S, S) for a grayscale specification.
            labels: (B,) int64. Every run of `num_classes` labels holds each class once, in random order.

        Raises:
            TrainingConfigError: An unknown split, or a number out of range.
        """
        self._check_batch_address(split, batch_index, batch_size)
        rng = _generator(self.spec.seed, SPLITS.index(split), batch_index)
        labels = _balanced_labels(rng, self.num_classes, batch_size)
        images = self._render(rng, labels, novel=split == "novel")
        appearance.flip(rng, images)
        if self.spec.grayscale:
            images = images[:, None]
        else:
            background = self._draw_background(rng, batch_size) if self.spec.textured_background else None
            images = appearance.colorize(rng, images, background)
        appearance.add_pixel_noise(rng, images)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _check_batch_address(self, split: str, batch_index: int, batch_size: int) -> None:
        task = "cannot make a batch of synthetic images"
        if split not in SPLITS:
            raise TrainingConfigError(f"{task}: split must be one of {', '.join(SPLITS)}, got {split!r}")
        for name, value, low in (("batch_index", batch_index, 0), ("batch_size", batch_size, 1)):
            if not _is_int_within(value, low, MAX_WORD):
                raise TrainingConfigError(f"{task}: {name} must be an int in {low}..{MAX_WORD}, got {value!r}")

    def _render(self, rng: Generator, labels: np.ndarray, novel: bool) -> np.ndarray:
        """Render grey images of the labelled classes, one call per family; (B, S, S) float32 in [0, 1]."""
        images = np.empty((len(labels), self.spec.size, self.spec.size), dtype=np.float32)
        first = 0
        for family, count in zip(self._families, self.spec.class_counts, strict=True):
            rows = labels - first
            members = np.flatnonzero((rows >= 0) & (rows < count))
            if members.size:
                images[members] = family.render(rng, rows[members] + novel * count, self.spec.size)
            first += count
        return images

    def _draw_background(self, rng: Generator, num_images: int) -> np.ndarray:
        return Textures.draw(rng, num_images).render(rng, np.arange(num_images), self.spec.size)


def normalize(images: Tensor) -> Tensor:
    """Bring images from [0, 1] to the range that networks are trained on, [-2, 2].

    Args:
        images: Pixels in [0, 1], any shape.

    Returns:
        Pixels with `CHANNEL_MEAN` taken off, divided by `CHANNEL_STD`, same shape.
    """
    return (images - CHANNEL_MEAN) / CHANNEL_STD


def _generator(seed: int, stream: int, index: int) -> Generator:
    return Generator(PCG64(SeedSequence([seed, stream, index])))


def _balanced_labels(rng: Generator, num_classes: int, num_labels: int) -> np.ndarray:
    """Labels (num_labels,) int64 made of random permutations of all classes, the last one cut short."""
    repeats = -(-num_labels // num_classes)
    permutations = rng.permuted(np.tile(np.arange(num_classes), (repeats, 1)), axis=1)
    return permutations.ravel()[:num_labels]


def _is_int_within(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
