"""Augmentation of training images, and the size of test images."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.augmentation import (
    Augmentation,
    AugmentedBatches,
    cut_out,
    evaluation_pixels,
    random_crops,
    resized_side,
)


def batch_at(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(6, 3, 16, 16, generator=generator), torch.arange(6) % 3


def augmented(**settings: float) -> AugmentedBatches:
    return AugmentedBatches(batch_at=batch_at, num_classes=3, augmentation=Augmentation(**settings), seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_is_a_square_somewhere(side: int) -> None:
    holes = cut_out(torch.ones(500, 3, 8, 8), side) == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert rows.max() == columns.max() == side
    assert rows.min() == columns.min() == math.ceil(side / 2)  # what is left of it in a corner
    assert holes[:, 0].any(0).all()  # anywhere


def test_batches_are_pure_and_draws_leave_no_trace() -> None:
    batches = augmented(cutout=4, mixup=0.5, cutmix=1.0)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    images, shares = batches(7)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    again = batches(7)
    assert torch.equal(images, again[0])
    assert torch.equal(shares, again[1])
    assert not torch.equal(batches(8)[1], shares)


def test_without_augmentation_batches_are_what_they_were() -> None:
    for found, expected in zip(augmented()(3), batch_at(3), strict=True):
        assert torch.equal(found, expected)


def test_mixup_mixes_images_and_targets_alike() -> None:
    plain, labels = batch_at(5)
    images, shares = augmented(mixup=1.0)(5)
    first = shares[0, 0]
    assert 0 < first < 1
    torch.testing.assert_close(images, first * plain + (1 - first) * plain.flip(0))
    one_hot = torch.eye(3)[labels]
    torch.testing.assert_close(shares, first * one_hot + (1 - first) * one_hot.flip(0))


def test_cutmix_takes_a_box_from_the_other_image() -> None:
    plain, labels = batch_at(0)
    images, shares = augmented(cutmix=1.0)(0)
    is_other = (images == plain.flip(0)).all(1)
    assert torch.equal(is_other, ~(images == plain).all(1))
    area, one_hot = is_other[0].float().mean(), torch.eye(3)[labels]
    assert 0 < area < 1
    torch.testing.assert_close(shares, area * one_hot.flip(0) + (1 - area) * one_hot)


def test_an_odd_batch_cannot_be_mixed() -> None:
    odd = AugmentedBatches(
        batch_at=lambda index: (torch.zeros(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64)),
        num_classes=2,
        augmentation=Augmentation(mixup=1.0),
    )
    with pytest.raises(TrainingConfigError, match="even batch size"):
        odd(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutout": -1}, "cutout"),
        ({"mixup": math.nan}, "mixup"),
        ({"cutmix": -0.5, "mixup": -1.0}, "mixup.*cutmix"),
        ({"rand_augment": "rand-x3"}, "rand-x3"),
        ({"rand_augment": "augmix-m3"}, "augmix-m3"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, float | str], message: str) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        Augmentation(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [(224, None, 256), (256, None, 256), (299, None, 299), (112, None, 128), (224, 0.95, 235), (288, 0.95, 303)],
)
def test_test_images_are_resized_as_published(size: int, crop: float | None, expected: int) -> None:
    assert resized_side(size, crop) == expected


def test_the_middle_of_a_large_test_image_is_taken() -> None:
    """A photo of 512 x 1024 with a bright middle: twice as wide as high, so that only the middle half is seen."""
    pixels = np.zeros((512, 1024, 3), dtype=np.uint8)
    pixels[:, 256:768] = 255
    middle = evaluation_pixels(Image.fromarray(pixels), 224)
    assert middle.shape == (3, 224, 224)
    assert middle.min() == 1
    wide = evaluation_pixels(Image.fromarray(pixels), 224, crop=224 / 512)
    assert (wide[0, 0, :].round().sum(), wide.shape) == (224, (3, 224, 224))
    whole = evaluation_pixels(Image.fromarray(pixels), 32)  # small images are taken whole
    assert whole[0, 0].round().sum() == 16


def test_large_training_images_keep_their_colours_if_asked_to() -> None:
    gray = Image.new("RGB", (100, 90), (60, 60, 60))
    torch.manual_seed(0)
    assert random_crops(80, Augmentation(color_jitter=False))(gray).unique().tolist() == [pytest.approx(60 / 255)]
    assert random_crops(80, Augmentation())(gray).mean() != pytest.approx(60 / 255)
