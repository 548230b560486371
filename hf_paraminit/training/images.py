"""Where training images come from: generated, or stored in a folder or in one of timm's data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
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


class GeneratedImages:
    """The package's own images.

    Args:
        size: Side in pixels.
        seed: Of classes and images.
    """

    def __init__(self, *, size: int = 32, seed: int = 0) -> None:
        self._images = SyntheticImages(SyntheticSpec(seed=seed, preset=GENERATED_CLASSES, size=size))
        self.num_classes = self._images.num_classes

    def __len__(self) -> int:
        return GENERATED_EPOCH

    def batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return a training batch."""
        pixels, labels = self._images.batch("train", index, batch_size)
        return normalize(pixels), labels

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield unseen images of the same classes."""
        for index in range(-(-GENERATED_TEST // batch_size)):
            pixels, labels = self._images.batch("validation", index, batch_size)
            yield normalize(pixels), labels


class StoredTrainingImages(StoredImages):
    """A data set with the split that it is tested on."""

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of the validation split, or of the test split where there is none.

        Raises:
            TrainingConfigError: There is neither.
        """
        failures = []
        for split in TEST_SPLITS:
            try:
                held_out = StoredImages(data=self.data, size=self.size, split=split, download=self.download)
            except TrainingConfigError as error:
                failures.append(str(error))
            else:
                yield from held_out.plain_batches(batch_size)
                return
        raise TrainingConfigError(f"{self.data} has nothing to test on. " + " ".join(failures))


def open_images(data: str, *, size: int = 32, seed: int = 0) -> TrainingImages:
    """Open training images.

    Args:
        data: "synthetic", a folder of images by class, or a timm data set ("torch/cifar10@FOLDER").
        size: Side in pixels.
        seed: Of generated images, and of order and augmentation of stored ones.

    Raises:
        TrainingConfigError: There is no such data, or nothing can be learned from it.
    """
    if data == "synthetic":
        return GeneratedImages(size=size, seed=seed)
    return StoredTrainingImages(data=data, size=size, seed=seed)
