"""Training images of timm: any data set or folder, augmented as DeiT does, addressed by batch index."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from timm.data import create_transform
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torch.utils.data import DataLoader

from hf_paraminit.errors import TrainingConfigError

Batch = tuple[Tensor, Tensor]


class LabelledPictures(Protocol):
    """A map-style data set of (PIL image, class number)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How images are varied; the defaults are DeiT's, which LeTs was published with.

    Attributes:
        auto_augment: Policy of timm; colour jitter is not used beside it.
        color_jitter: Where there is no policy.
        random_erasing: Probability.
        mixup: Alpha of mixup.
        cutmix: Alpha of CutMix.
        switch: Probability of CutMix instead of mixup.
        label_smoothing: Of the labels.
        repeats: How often an image occurs in a row, each time varied anew (repeated augmentation).
    """

    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.1
    repeats: int = 3

    def transform(self, image_shape: tuple[int, int, int]) -> Callable[[Any], Tensor]:
        """From a PIL image to (C, H, W), normalised as ImageNet."""
        return create_transform(
            image_shape,
            is_training=True,
            auto_augment=self.auto_augment,
            color_jitter=self.color_jitter,
            interpolation="bicubic",
            re_prob=self.random_erasing,
            re_mode="pixel",
        )

    def mixing(self, num_classes: int) -> Callable[[Tensor, Tensor], Batch]:
        """From (B, C, H, W) and class numbers to mixed images and shares (B, K)."""
        if not self.mixup and not self.cutmix:
            return lambda images, labels: (images, mixup_target(labels, num_classes, smoothing=self.label_smoothing))
        return Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            switch_prob=self.switch,
            label_smoothing=self.label_smoothing,
            num_classes=num_classes,
        )


class AugmentedBatches:
    """Batches by number. Every draw follows from the seed and the number, so a resumed run sees the same batches.

    Args:
        pictures: What to draw from.
        batch_size: Images per batch, an even number because they are mixed in pairs.
        image_shape: (C, H, W) of the result.
        num_classes: Classes of the data.
        augmentation: How images are varied.
        seed: Of order and variation.

    Raises:
        TrainingConfigError: Too few images, or an odd batch size.
    """

    def __init__(
        self,
        pictures: LabelledPictures,
        *,
        batch_size: int,
        image_shape: tuple[int, int, int],
        num_classes: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.augmentation = augmentation or Augmentation()
        if batch_size % 2 or not 2 <= batch_size <= len(pictures) * self.augmentation.repeats:
            raise TrainingConfigError(
                f"LeTs training: a batch of {batch_size} from {len(pictures)} images; expected an even number, and as "
                "many images."
            )
        self.pictures = pictures
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.seed = seed
        self._transform = self.augmentation.transform(image_shape)
        self._mixed = self.augmentation.mixing(num_classes)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that hold as many images as there are; with repeats they are fewer different ones."""
        return max(1, len(self.pictures) // self.batch_size)

    def __call__(self, index: int) -> Batch:
        return self[index]

    def __getitem__(self, index: int) -> Batch:
        """Images (B, C, H, W) and shares of the classes (B, K)."""
        with _drawing_from(self.seed, index):
            pairs = [self.pictures[place] for place in self._places(index)]
            labels = torch.tensor([label for _, label in pairs])
            if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
                raise TrainingConfigError(
                    f"LeTs training: found the class {int(labels.max())}, expected 0 to {self.num_classes - 1}. Say "
                    "how many classes the data have."
                )
            images = torch.stack([self._transform(picture.convert("RGB")) for picture, _ in pairs])
            return self._mixed(images, labels)

    def _places(self, index: int) -> Sequence[int]:
        epoch, batch = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.pictures), generator=torch.Generator().manual_seed(self.seed + epoch))
            self._epoch, self._order = epoch, order.repeat_interleave(self.augmentation.repeats)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class ReadAhead:
    """Makes batches in worker processes before they are asked for. A process asks for every n-th, n processes being.

    Args:
        batches: Batches by number.
        num_workers: Worker processes.
    """

    def __init__(self, batches: AugmentedBatches, num_workers: int) -> None:
        self.batches = batches
        self.num_workers = num_workers
        self._expected = -1
        self._stream: Iterator[Batch] = iter(())

    def __call__(self, index: int) -> Batch:
        stride = PartialState().num_processes
        if index != self._expected:  # the first one, or that after a resumed checkpoint
            numbers = range(index, 2**62, stride)
            loader: DataLoader[Any] = DataLoader(
                self.batches,  # type: ignore[arg-type]
                batch_size=None,
                sampler=numbers,
                num_workers=self.num_workers,
                multiprocessing_context="spawn" if self.num_workers else None,
            )
            self._stream = iter(loader)
        self._expected = index + stride
        return next(self._stream)


@contextmanager
def _drawing_from(seed: int, index: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators, which timm's augmentations draw from, as seed and index say."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    words = np.random.SeedSequence([seed, index]).generate_state(3)
    with torch.random.fork_rng(devices=[]):
        random.seed(int(words[0]))
        np.random.seed(words[1])  # noqa: NPY002
        torch.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
