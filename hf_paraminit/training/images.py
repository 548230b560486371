"""Where training images come from: generated, or stored in a folder or in one of timm's data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.augmentation import Augmentation, rand_augmented, seeded
from hf_paraminit.training.stored_images import StoredImages
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

# Class counts of the generated images (fractals, contours, shapes, textures): few, so that a short run learns them.
GENERATED_CLASSES = (8, 4, 4, 4)
GENERATED_EPOCH, GENERATED_TEST = 10_000, 2000  # images; the supply is endless
TEST_SPLITS = ("validation", "val", "test")


class TrainingImages(Protocol):
    """Images for training and testing; normalised (B, 3, S, S) float32 with labels (B,) int64."""

    num_classes: int

    def __len__(self) -> int:
        """Images of one epoch."""
        ...

    def batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return a training batch, a pure function of its arguments."""
        ...

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images that are tested on."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Which images are tested on, and how they are brought to size.

    Attributes:
        last: Hold out this many training images, the last of the data set (CIFAR-10 as published: 5000); 0 to test on
            the validation or test split.
        last_of_each_class: Hold out so many of each class instead (ImageNet as published: 50).
        size: Side in pixels of large test images, if it is to be another than that of the training images.
        crop: Share of a resized large image that is taken; see `augmentation.evaluation_pixels`.
    """

    last: int = 0
    last_of_each_class: int = 0
    size: int | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.last < 0 or self.last_of_each_class < 0 or self.last * self.last_of_each_class:
            faults.append(
                "either the last training images are held out or the last of each class, found "
                f"{self.last} and {self.last_of_each_class}"
            )
        if self.size is not None and self.size < 1:
            faults.append(f"images need at least 1 pixel, found {self.size}")
        if self.crop is not None and not 0 < self.crop <= 1:
            faults.append(f"the share that is cropped must lie in (0, 1], found {self.crop}")
        if faults:
            raise TrainingConfigError(f"Cannot test so: {'; '.join(faults)}.")

    @property
    def is_of_training(self) -> bool:
        """Whether training images are held out."""
        return bool(self.last or self.last_of_each_class)


class GeneratedImages:
    """The package's own images.

    Args:
        size: Side in pixels.
        seed: Of classes and images.
        augmentation: What is done to images of `batch`: RandAugment.
    """

    def __init__(self, *, size: int = 32, seed: int = 0, augmentation: Augmentation | None = None) -> None:
        self._images = SyntheticImages(SyntheticSpec(seed=seed, preset=GENERATED_CLASSES, size=size))
        self._rand_augment = augmentation.rand_augment if augmentation else None
        self._seed = seed
        self.num_classes = self._images.num_classes

    def __len__(self) -> int:
        return GENERATED_EPOCH

    def batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return a training batch."""
        pixels, labels = self._images.batch("train", index, batch_size)
        if self._rand_augment:
            with seeded(self._seed, 1, index):
                pixels = rand_augmented(pixels, self._rand_augment)
        return normalize(pixels), labels

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield unseen images of the same classes."""
        for index in range(-(-GENERATED_TEST // batch_size)):
            pixels, labels = self._images.batch("validation", index, batch_size)
            yield normalize(pixels), labels


class StoredTrainingImages:
    """A data set with what it is tested on.

    Args:
        images: All training images.
        held_out: What is tested on.

    Raises:
        TrainingConfigError: More images are to be held out than there are, or tested at a size they do not have.
    """

    def __init__(self, images: StoredImages, held_out: HeldOut) -> None:
        if images.is_small and held_out.size not in (None, images.size):
            raise TrainingConfigError(
                f"Cannot test {images.data} at {held_out.size} pixels: images of {images.size} pixels are kept in "
                "memory at that size. Test at the size of the training images."
            )
        self.images = images
        self.held_out = held_out
        self.num_classes = images.num_classes
        self._tested: np.ndarray | None = None
        if held_out.is_of_training:
            kept, self._tested = _split(images, held_out)
            self.images = images.only(kept)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return a training batch."""
        return self.images.batch(index, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the held-out images; without any those of the validation split, or of the test split.

        Raises:
            TrainingConfigError: There is none of these.
        """
        source = self.images if self.held_out.is_of_training else self._test_split()
        yield from source.plain_batches(
            batch_size, places=self._tested, size=self.held_out.size, crop=self.held_out.crop
        )

    def _test_split(self) -> StoredImages:
        train, failures = self.images, []
        for split in TEST_SPLITS:
            try:
                return StoredImages(data=train.data, size=train.size, split=split, download=train.download)
            except TrainingConfigError as error:
                failures.append(str(error))
        raise TrainingConfigError(f"{train.data} has nothing to test on. " + " ".join(failures))


def _split(images: StoredImages, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images that are trained on, and of those held out: the last, in the order of the data set."""
    labels = images.labels.numpy()
    count = held_out.last or held_out.last_of_each_class
    groups = [np.arange(len(labels))] if held_out.last else [np.flatnonzero(labels == one) for one in np.unique(labels)]
    if short := [len(group) for group in groups if len(group) <= count]:
        raise TrainingConfigError(
            f"Cannot hold out {count} images{'' if held_out.last else ' of each class'} of {images.data}: it has "
            f"{min(short)}{'' if held_out.last else ' of one class'}, and some must be left to train on."
        )
    last = np.sort(np.concatenate([group[-count:] for group in groups]))
    return np.setdiff1d(np.arange(len(labels)), last), last


def open_images(
    data: str,
    *,
    size: int = 32,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    held_out: HeldOut | None = None,
) -> TrainingImages:
    """Open training images.

    Args:
        data: "synthetic", a folder of images by class, or a timm data set ("torch/cifar10@FOLDER").
        size: Side in pixels.
        seed: Of generated images, and of order and augmentation of stored ones.
        augmentation: What is done to training images besides windows and flips.
        held_out: What is tested on.

    Raises:
        TrainingConfigError: There is no such data, or nothing can be learned from it.
    """
    held_out = held_out or HeldOut()
    if data == "synthetic":
        if held_out.is_of_training or held_out.size not in (None, size):
            raise TrainingConfigError(
                "Generated images are tested on unseen ones of the same size; none are held out of the training "
                "images. Leave these options out, or name a data set."
            )
        return GeneratedImages(size=size, seed=seed, augmentation=augmentation)
    stored = StoredImages(data=data, size=size, seed=seed, augmentation=augmentation or Augmentation())
    return StoredTrainingImages(stored, held_out)
