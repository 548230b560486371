"""How training images are changed, and how test images are brought to size, in the published recipes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, Mixup
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from hf_paraminit.errors import TrainingConfigError

SMALL_SIDE = 64  # pixels up to which an image is resized as a whole
CROP_PADDING = 4  # pixels around small images, of which a random window is taken (CIFAR's usual augmentation)
LARGE_SIDE, LARGE_RESIZED = 224, 256  # ImageNet: the shorter side becomes 256 pixels, the middle 224 are taken
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}  # ImageNet training of GHN-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to training images besides random windows and flips.

    Attributes:
        color_jitter: Change the colours of images above 64 pixels.
        rand_augment: Operations of RandAugment (arXiv 1909.13719) in timm's notation, as "rand-m6".
        cutout: Side in pixels of a square that is blacked out (arXiv 1708.04552); 0 for none.
        mixup: Parameter of Mixup (arXiv 1710.09412); 0 for none.
        cutmix: Parameter of CutMix (arXiv 1905.04899); 0 for none. With both, one is drawn for each batch.
    """

    color_jitter: bool = True
    rand_augment: str | None = None
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be finite and at least 0, found {getattr(self, name)}"
            for name in ("cutout", "mixup", "cutmix")
            if not 0 <= getattr(self, name) < math.inf
        ]
        if self.rand_augment is not None:
            faults += _rand_augment_faults(self.rand_augment)
        if faults:
            raise TrainingConfigError(f"Cannot augment images so: {'; '.join(faults)}.")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, so that they belong to several classes."""
        return self.mixup > 0 or self.cutmix > 0


def _rand_augment_faults(spec: str) -> list[str]:
    expected = f"rand_augment must be written as timm does, as 'rand-m6' or 'rand-m7-mstd0.5', found {spec!r}"
    if not spec.startswith("rand"):
        return [expected]
    try:
        rand_augment_transform(spec, {})
    except (AssertionError, ValueError) as error:
        return [f"{expected} ({error or 'unknown part'})"]
    return []


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Draw from a stream of these numbers; torch's, numpy's and Python's global generators are put back afterwards."""
    seed = int(np.random.default_rng(numbers).integers(2**63))
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (timm draws from it)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def rand_augmented(pixels: Tensor, spec: str) -> Tensor:
    """Apply RandAugment to each image (B, 3, S, S) in [0, 1]; draws come from numpy's and Python's generators."""
    change = _rand_augment(spec, pixels.shape[-1])
    return torch.stack([as_pixels(change(_as_image(image))) for image in pixels])


def cut_out(images: Tensor, side: int) -> Tensor:
    """Set a square of normalised images (B, C, H, W) to zero, each its own; its centre is uniform, its rest cut off."""
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        offset = torch.arange(length) - torch.randint(length, (count, 1))
        inside.append((offset >= -(side // 2)) & (offset < side - side // 2))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class AugmentedBatches:
    """Pure function from a batch index to normalised images and targets, with holes cut and images mixed.

    Attributes:
        batch_at: Pure function from a batch index to normalised images (B, 3, S, S) and labels (B,).
        num_classes: K.
        augmentation: What to do; colours and RandAugment are the business of `batch_at`.
        seed: Of the draws.
    """

    batch_at: Callable[[int], tuple[Tensor, Tensor]]
    num_classes: int
    augmentation: Augmentation
    seed: int = 0

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return images and labels (B,), or (B, K) shares of classes where images are mixed.

        Raises:
            TrainingConfigError: Images are to be mixed in pairs, and their number is odd.
        """
        images, labels = self.batch_at(index)
        with seeded(self.seed, 2, index):
            if self.augmentation.cutout:
                images = cut_out(images, self.augmentation.cutout)
            return self._mixed(images, labels) if self.augmentation.mixes else (images, labels)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            raise TrainingConfigError(
                f"Mixup and CutMix take images in pairs; a batch has {len(images)}. Choose an even batch size."
            )
        augmentation = self.augmentation
        mix = Mixup(augmentation.mixup, augmentation.cutmix, label_smoothing=0.0, num_classes=self.num_classes)
        return mix(images.clone(), labels)  # it writes into what it is given


def cropped_and_flipped(images: Tensor) -> Tensor:
    """Shift each image (B, C, H, W) by up to 4 pixels, zeros coming in, and mirror every second one.

    Draws come from torch's global generator.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4)
    down, right = torch.randint(2 * CROP_PADDING + 1, (2, count, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    pixels = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return pixels.permute(0, 3, 1, 2).contiguous()


def random_crops(size: int, augmentation: Augmentation) -> Callable[[Image.Image], Tensor]:
    """Return the training pipeline of large images: a part of random shape, flipped, its colours changed."""
    steps: list[Callable[[Image.Image], Image.Image]] = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    if augmentation.rand_augment:
        steps.append(_rand_augment(augmentation.rand_augment, size))
    if augmentation.color_jitter:
        steps.append(v2.ColorJitter(**JITTER))
    compose = v2.Compose(steps)
    return lambda image: as_pixels(compose(image.convert("RGB")))


def evaluation_pixels(image: Image.Image, size: int, crop: float | None = None) -> Tensor:
    """Bring a test image to (3, size, size) in [0, 1].

    Small ones are resized as they are. Of others the shorter side is resized, and the middle is taken: from 224 pixels
    on as published, max(size, 256) and then size; below in the same proportion.

    Args:
        image: Of any size and mode.
        size: Side in pixels.
        crop: Share of the resized image that is taken, as 0.95 in timm's recipes; None for the above.
    """
    image = image.convert("RGB")
    if size <= SMALL_SIDE:
        return as_pixels(image.resize((size, size)))
    resized = v2.functional.resize(image, [resized_side(size, crop)], antialias=True)
    return as_pixels(v2.functional.center_crop(resized, [size, size]))


def resized_side(size: int, crop: float | None = None) -> int:
    """Length that the shorter side is resized to before the middle is taken."""
    if crop is not None:
        return math.floor(size / crop)
    return max(size, LARGE_RESIZED) if size >= LARGE_SIDE else round(size * LARGE_RESIZED / LARGE_SIDE)


def _rand_augment(spec: str, size: int) -> Callable[[Image.Image], Image.Image]:
    """Timm's operations with its training script's settings: what is moved in is of the mean colour."""
    mean = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
    return rand_augment_transform(spec, {"translate_const": int(0.45 * size), "img_mean": mean})


def as_pixels(image: Image.Image) -> Tensor:
    """A PIL image in RGB as (3, H, W) in [0, 1]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def _as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
