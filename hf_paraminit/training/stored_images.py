"""Labelled images from a folder or one of timm's data sets: read into memory, or batch by batch for training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.augmentation import (
    SMALL_SIDE,
    Augmentation,
    cropped_and_flipped,
    evaluation_pixels,
    rand_augmented,
    random_crops,
    seeded,
)

# What constructors of models and readers of data raise when an argument does not suit them; there is no common class.
HOST_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_timm_images(
    name: str, split: str, *, root: str | None, size: int, limit: int | None, download: bool = False
) -> tuple[Tensor, Tensor, list[str]]:
    """Read labelled images of a timm data set into memory.

    Args:
        name: What `timm.data.create_dataset` takes ("torch/cifar10", "hfds/...", "" for a folder).
        split: Which part.
        root: Folder of the data.
        size: Side in pixels that images are brought to, as `augmentation.evaluation_pixels` does.
        limit: Most images; they are taken evenly over the set. None for all.
        download: Whether the host may download the set.

    Returns:
        images: (N, 3, size, size) float32 in [0, 1].
        labels: (N,) int64.
        class_names: Names of the classes where the set has them.

    Raises:
        TrainingConfigError: There is no such set or split, or it cannot be read.
    """
    dataset, names = open_timm_images(name, split, root=root, download=download)
    with _readable(name, split, root):
        count = len(dataset)
        wanted = count if limit is None else min(limit, count)
        chosen = [round(place) for place in torch.linspace(0, count - 1, wanted).tolist()] if count else []
        pairs = [dataset[index] for index in chosen]
        images = torch.stack([evaluation_pixels(image, size) for image, _ in pairs])
        labels = torch.tensor([int(label) for _, label in pairs], dtype=torch.int64)
    return images, labels, names


def open_timm_images(name: str, split: str, *, root: str | None, download: bool = False) -> tuple[Any, list[str]]:
    """Open a timm data set without reading it: pairs of a PIL image and a label, and the names of the classes.

    Raises:
        TrainingConfigError: There is no such set or split.
    """
    with _readable(name, split, root):
        dataset: Any = create_dataset(name, root=root, split=split, is_training=False, download=download)
    names = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or getattr(dataset, "class_to_idx", {})
    return dataset, sorted(names, key=names.__getitem__)


@contextmanager
def _readable(name: str, split: str, root: str | None) -> Iterator[None]:
    what = f"folder {root}" if name == "" else f"timm data set {name!r}"
    try:
        yield
    except HOST_ERRORS as error:
        raise TrainingConfigError(
            f"Could not read split {split!r} of the {what}: {error or type(error).__name__}. Name 'digits', "
            "'synthetic', 'photos', a folder with one sub-folder of images per class, or what "
            "timm.data.create_dataset takes, as 'torch/cifar10'."
        ) from error


# Channel statistics that ppuda normalises CIFAR-10 with; everything else gets those of ImageNet.
CIFAR_MEAN, CIFAR_STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)


@dataclass(eq=False, kw_only=True)
class StoredImages:
    """Training batches of a data set, as a pure function of their index.

    Images of up to 64 pixels are kept in memory, cropped from a border of 4 pixels and flipped. Larger ones are read
    when they are asked for; a random part of random aspect is resized and flipped, and its colours are changed.

    Args:
        data: A folder with one sub-folder of images per class (or with a `train` folder of such), or what
            `timm.data.create_dataset` takes ("torch/cifar10@FOLDER").
        size: Side in pixels that images are brought to.
        seed: Of the order and the augmentation.
        split: Which part of the data set.
        download: Whether timm may download the set.
        augmentation: What else is done to the images of `batch`: colours and RandAugment.

    Attributes:
        places: Which images belong, by their number in the data set.

    Raises:
        TrainingConfigError: There is no such data, or it is empty or of one class only.
    """

    data: str
    size: int = 32
    seed: int = 0
    split: str = "train"
    download: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    places: np.ndarray = field(init=False)
    num_classes: int = field(init=False)

    def __post_init__(self) -> None:
        name, root = _place(self.data, self.split)
        if self.is_small:
            pixels, self._labels, classes = load_timm_images(
                name, self.split, root=root, size=self.size, limit=None, download=self.download
            )
            self._pixels = (pixels * 255).round().to(torch.uint8)
            count, seen = len(self._labels), len(self._labels.unique())
            self.num_classes = len(classes) or int(self._labels.max()) + 1
        else:
            self._dataset, classes = open_timm_images(name, self.split, root=root, download=self.download)
            count, seen, self.num_classes = len(self._dataset), len(classes), len(classes)
        if seen < 2 or not count:
            raise TrainingConfigError(
                f"Cannot train on {self.data}: {count} images of {seen} classes in split {self.split!r}; "
                "expected images of two classes or more, which have names if the images are large."
            )
        self._restrict(np.arange(count))
        is_cifar = "cifar" in self.data.lower() and self.size == 32
        mean, std = (CIFAR_MEAN, CIFAR_STD) if is_cifar else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def _restrict(self, places: np.ndarray) -> None:
        self.places = places
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def only(self, places: np.ndarray) -> Self:
        """Copy that trains on some of the images; the images themselves are shared."""
        part = copy.copy(self)
        part._restrict(places)
        return part

    @property
    def is_small(self) -> bool:
        """Whether all images are kept in memory."""
        return self.size <= SMALL_SIDE

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    @property
    def labels(self) -> Tensor:
        """Class of every image of the data set, (N,) int64; read without the images where their host allows."""
        return self._labels if self.is_small else _labels_of(self._dataset)

    def batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return a training batch.

        Args:
            index: Which one; every image occurs once per pass over the set.
            batch_size: Number of images.

        Returns:
            images: (B, 3, size, size) float32, normalised.
            labels: (B,) int64.
        """
        count, ranks = len(self), np.arange(index * batch_size, (index + 1) * batch_size)
        chosen = self.places[[self._order(int(rank // count))[rank % count] for rank in ranks]].tolist()
        with seeded(self.seed, 1, index):
            pixels, labels = self._small(chosen) if self.is_small else self._large(chosen)
        return (pixels - self._mean) / self._std, labels

    def plain_batches(
        self, batch_size: int, *, places: np.ndarray | None = None, size: int | None = None, crop: float | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images without augmentation, in order.

        Args:
            batch_size: Images per batch.
            places: Which, by their number in the data set; None for those that belong.
            size: Side of large images, if it is to be another than that of `batch`.
            crop: Share of a large image that is taken; see `augmentation.evaluation_pixels`.
        """
        for chosen in torch.as_tensor(self.places if places is None else places).split(batch_size):
            if self.is_small:
                pixels, labels = self._pixels[chosen].float() / 255, self._labels[chosen]
            else:
                pairs = [self._dataset[int(place)] for place in chosen]
                pixels = torch.stack([evaluation_pixels(image, size or self.size, crop) for image, _ in pairs])
                labels = torch.tensor([int(label) for _, label in pairs])
            yield (pixels - self._mean) / self._std, labels

    def _draw_order(self, number: int) -> np.ndarray:
        """Order of one pass."""
        return np.random.default_rng([self.seed, 0, number]).permutation(len(self))

    def _small(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        pixels = cropped_and_flipped(self._pixels[chosen].float() / 255)
        if self.augmentation.rand_augment:
            pixels = rand_augmented(pixels, self.augmentation.rand_augment)
        return pixels, self._labels[chosen]

    def _large(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        augment = random_crops(self.size, self.augmentation)
        pairs = [self._dataset[index] for index in chosen]
        return torch.stack([augment(image) for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])


def _labels_of(dataset: Any) -> Tensor:
    """Labels of a data set of timm or torchvision; of others all images are read."""
    samples = getattr(getattr(dataset, "reader", dataset), "samples", None)
    if samples is not None:
        return torch.tensor([int(label) for _, label in samples])
    targets = getattr(dataset, "targets", None)
    return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))] if targets is None else targets)


def _place(data: str, split: str) -> tuple[str, str | None]:
    """Name for timm ("" for a folder) and root folder."""
    if Path(data).is_dir():
        inner = Path(data) / split
        if split != "train" and not inner.is_dir():
            raise TrainingConfigError(f"The folder {data} has no sub-folder {split!r} with images that are held out.")
        return "", str(inner if inner.is_dir() else data)
    name, _, root = data.partition("@")
    return name, root or None
