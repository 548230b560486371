"""The data on which initialisations are compared, in memory, and checked before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.digits import MEAN as DIGITS_MEAN, STD as DIGITS_STD, load_digits
from hf_paraminit.evaluation.learning_curve import LabelledImages
from hf_paraminit.evaluation.photos import load_photo_rotations
from hf_paraminit.training.augmentation import SMALL_SIDE
from hf_paraminit.training.stored_images import load_timm_images
from hf_paraminit.training.synthetic import CHANNEL_MEAN, CHANNEL_STD, SyntheticImages, SyntheticSpec, normalize

Block = Literal["validation", "test"]

# Most images that are read of a folder or a named data set: the comparison is about the first 150 steps.
MAX_TRAIN, MAX_TEST = 4000, 1000
ALL = 2**40  # more than any data set has
VALIDATION_SHARE = 0.2
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "validation", "val")
SYNTHETIC_SEED = 1  # class parameters; 0 is the seed of the built-in predictor's own images
FEW_SHOT_CLASSES = (8, 4, 4, 4)
SMALL_NOISE, LARGE_NOISE = 0.08, 0.18  # of pixels in [0, 1] (GHN-2, arXiv 2110.13100, section 4.3)
NOISE_SEED = 0
FEW_SHOT = {"train": 200, "validation": 400, "test": 1000}  # 20-way, 10-shot


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Labelled images in three blocks.

    Attributes:
        name: What it is called.
        train: Images (N, C, S, S) float32, normalised, and labels (N,) int64 in 0..num_classes-1.
        validation: Likewise; learning rates are tuned on it.
        test: Likewise; results are reported on it.
        num_classes: Classes.
        pixel_mean: What was taken off pixels in [0, 1], per channel or for all.
        pixel_std: What they were divided by.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    num_classes: int
    pixel_mean: tuple[float, ...] = (CHANNEL_MEAN,)
    pixel_std: tuple[float, ...] = (CHANNEL_STD,)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """Hexadecimal digest of all blocks; equal for equal data."""
        digest = hashlib.sha256()
        for images, labels in (self.train, self.validation, self.test):
            digest.update(images.contiguous().numpy().tobytes())
            digest.update(labels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def block(self, name: Block) -> LabelledImages:
        """The block that is evaluated on."""
        return self.validation if name == "validation" else self.test

    def noisy(self, name: Block, std: float) -> LabelledImages:
        """A block whose pixels in [0, 1] got normal noise, the same on every call, and were clipped to that range.

        Args:
            name: The block.
            std: Standard deviation of the noise; 0 for none.
        """
        images, labels = self.block(name)
        if not std:
            return images, labels
        mean, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.pixel_mean, self.pixel_std))
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        return ((images * scale + mean + std * noise).clamp(0, 1) - mean) / scale, labels


def published_noise(size: int) -> float:
    """Standard deviation of the noise that robustness to it is published with: on CIFAR-10, on ImageNet."""
    return SMALL_NOISE if size <= SMALL_SIDE else LARGE_NOISE


def load_task(
    data: str | Task,
    *,
    size: int = 32,
    batch_size: int = 64,
    max_train: int | None = MAX_TRAIN,
    max_test: int | None = MAX_TEST,
) -> Task:
    """Load and check the data of a comparison.

    Args:
        data: "digits" (scikit-learn's, split by writer), "synthetic" (generated, ten classes), "synthetic-novel"
            (generated, 20 classes of ten examples each that no predictor was trained on), "photos" (which way up is a
            crop of scikit-learn's two photos), a folder with one sub-folder of images per class (or `train` and
            `test` folders of such), what `timm.data.create_dataset` takes ("torch/cifar10@FOLDER"), or a `Task`.
        size: Side in pixels that images are brought to.
        batch_size: Images that a training step needs.
        max_train: Most training images that are read of a folder or named data set, evenly over it; None for all.
        max_test: Likewise of test images.

    Raises:
        TrainingConfigError: No such data, or data that nothing can be learned from; all faults in one message.
        MissingDependencyError: scikit-learn is needed and not installed.
    """
    task = data if isinstance(data, Task) else _load(data, size, max_train or ALL, max_test or ALL)
    faults = list(_faults(task, batch_size))
    if faults:
        raise TrainingConfigError(f"Cannot compare initialisations on {task.name}: {'; '.join(faults)}.")
    return task


def _load(data: str, size: int, max_train: int, max_test: int) -> Task:
    if data == "digits":
        return Task(
            name="digits",
            train=load_digits("train", size=size),
            validation=load_digits("validation", size=size),
            test=load_digits("test", size=size),
            num_classes=10,
            pixel_mean=(DIGITS_MEAN,),
            pixel_std=(DIGITS_STD,),
        )
    if data == "synthetic":
        return _synthetic("tiny", "train", {"train": 1000, "validation": 300, "test": 500}, data, size)
    if data == "synthetic-novel":
        return _synthetic(FEW_SHOT_CLASSES, "novel", FEW_SHOT, data, size)
    if data == "photos":
        return Task(
            name="photos",
            train=load_photo_rotations("train", size=size),
            validation=load_photo_rotations("validation", size=size),
            test=load_photo_rotations("test", size=size),
            num_classes=4,
        )
    if Path(data).is_dir():
        return _folder(Path(data), size, max_train, max_test)
    return _named(data, size, max_train, max_test)


def _synthetic(
    preset: str | tuple[int, ...], split: Literal["train", "novel"], counts: dict[str, int], name: str, size: int
) -> Task:
    """Blocks are batches of different numbers, so no image occurs twice."""
    images = SyntheticImages(SyntheticSpec(seed=SYNTHETIC_SEED, preset=preset, size=size))
    blocks: dict[str, Any] = {}
    for index, (block, count) in enumerate(counts.items()):
        source = split if split == "novel" or block == "train" else "validation"
        pixels, labels = images.batch(source, index, count)
        blocks[block] = (normalize(pixels), labels)
    return Task(name=name, num_classes=images.num_classes, **blocks)


def _folder(root: Path, size: int, max_train: int, max_test: int) -> Task:
    train_root, test_root = _sub_folder(root, TRAIN_FOLDERS), _sub_folder(root, TEST_FOLDERS)
    if train_root is not None and test_root is not None:
        images, labels, classes = load_timm_images("", "train", root=str(train_root), size=size, limit=max_train)
        *test, test_classes = load_timm_images("", "train", root=str(test_root), size=size, limit=max_test)
        if classes != test_classes:
            raise TrainingConfigError(
                f"Cannot compare initialisations on {root}: {train_root.name} has the classes {', '.join(classes)}, "
                f"{test_root.name} has {', '.join(test_classes)}; both need the same sub-folders."
            )
        train, validation = _split_by_class(images, labels, VALIDATION_SHARE)
        return _normalized(root.resolve().name, train, validation, (test[0], test[1]))
    source = train_root or root
    images, labels, _ = load_timm_images("", "train", root=str(source), size=size, limit=min(ALL, max_train + max_test))
    train, held_out = _split_by_class(images, labels, 2 * VALIDATION_SHARE)
    validation, test_block = _split_by_class(*held_out, 0.5)
    return _normalized(root.resolve().name, train, validation, test_block)


def _sub_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _named(data: str, size: int, max_train: int, max_test: int) -> Task:
    """A data set of timm; `NAME@FOLDER` says where it lies."""
    name, _, root = data.partition("@")
    images, labels, _ = load_timm_images(name, "train", root=root or None, size=size, limit=max_train)
    try:
        *test, _ = load_timm_images(name, "validation", root=root or None, size=size, limit=max_test)
    except TrainingConfigError:  # sets of the Hub often have a test split only
        *test, _ = load_timm_images(name, "test", root=root or None, size=size, limit=max_test)
    train, validation = _split_by_class(images, labels, VALIDATION_SHARE)
    return _normalized(name, train, validation, (test[0], test[1]))


def _split_by_class(images: Tensor, labels: Tensor, share: float) -> tuple[LabelledImages, LabelledImages]:
    """Hold out the last `share` of each class: neighbours in file order are often of the same source."""
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        is_held_out[members[len(members) - round(share * len(members)) :]] = True
    return (images[~is_held_out], labels[~is_held_out]), (images[is_held_out], labels[is_held_out])


def _normalized(name: str, train: LabelledImages, validation: LabelledImages, test: LabelledImages) -> Task:
    """Mean 0 and standard deviation 1 per channel of the training block."""
    mean = train[0].mean((0, 2, 3), keepdim=True)
    std = train[0].std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    blocks = [((images - mean) / std, labels) for images, labels in (train, validation, test)]
    num_classes = int(max(int(labels.max()) for _, labels in blocks if len(labels))) + 1
    return Task(
        name=name,
        train=blocks[0],
        validation=blocks[1],
        test=blocks[2],
        num_classes=num_classes,
        pixel_mean=tuple(mean.flatten().tolist()),
        pixel_std=tuple(std.flatten().tolist()),
    )


def _faults(task: Task, batch_size: int) -> Iterator[str]:
    for block, (images, labels) in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        yield from _block_faults(task, block, images, labels)
    if len(task.train[0]) < batch_size:
        yield f"the train block has {len(task.train[0])} images, fewer than a batch of {batch_size}"
    if len(task.train[1]) and len(task.train[1].unique()) < 2:
        yield "the train block has only one class, so there is nothing to learn"


def _block_faults(task: Task, block: str, images: Tensor, labels: Tensor) -> Iterator[str]:
    if images.ndim != 4 or not images.is_floating_point():
        yield f"images of the {block} block must be (N, C, H, W) float, found {tuple(images.shape)} {images.dtype}"
        return
    if len(images) == 0 or labels.shape != (len(images),):
        yield f"the {block} block has {len(images)} images and labels of shape {tuple(labels.shape)}"
        return
    found, expected = tuple(images.shape[1:]), tuple(task.train[0].shape[1:])
    if found != expected:
        yield f"images of the {block} block are {found}, those of train {expected}"
    not_finite = int((~images.isfinite()).flatten(1).any(1).sum())
    if not_finite:
        yield f"{not_finite} of {len(images)} images of the {block} block have NaN or infinite pixels"
    if labels.is_floating_point() or labels.dtype == torch.bool:
        yield f"labels of the {block} block must be integers, found {labels.dtype}"
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= task.num_classes:
        yield f"labels of the {block} block span {low}..{high}, expected 0..{task.num_classes - 1}"
