"""Training images: generated, and stored in a folder."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.augmentation import Augmentation, cropped_and_flipped
from hf_paraminit.training.images import GENERATED_TEST, HeldOut, open_images
from hf_paraminit.training.stored_images import CIFAR_MEAN, StoredImages

PER_CLASS = 6


def write_folder(root: Path, *, side: int = 32, splits: tuple[str, ...] = ("train", "validation")) -> Path:
    """Two classes, dark and bright, in uniform gray of as many shades as images."""
    for split in splits:
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for index in range(PER_CLASS):
                shade = np.full((side, side, 3), 20 + 120 * label + 15 * index, dtype=np.uint8)
                Image.fromarray(shade).save(root / split / name / f"{index}.png")
    return root


def test_batches_are_pure_and_cover_each_pass_once(tmp_path: Path) -> None:
    images = open_images(str(write_folder(tmp_path)), seed=3)
    assert (images.num_classes, len(images)) == (2, 2 * PER_CLASS)
    state = torch.get_rng_state()
    batches = [images.batch(index, 4) for index in range(6)]
    assert torch.equal(torch.get_rng_state(), state)
    again = open_images(str(tmp_path), seed=3).batch(4, 4)
    assert torch.equal(again[0], batches[4][0])
    assert torch.equal(again[1], batches[4][1])
    assert not torch.equal(open_images(str(tmp_path), seed=4).batch(4, 4)[0], batches[4][0])
    for first in (0, 3):  # twelve images are three batches
        pixels = torch.cat([batch for batch, _ in batches[first : first + 3]])
        assert len(pixels[:, 0, 16, 16].unique()) == 2 * PER_CLASS
        assert torch.cat([labels for _, labels in batches[first : first + 3]]).sum() == PER_CLASS
    assert all((pixels[:, 0, 16, 16] > pixels[:, 0, 16, 16].median()).sum() <= 2 for pixels, _ in batches)


def test_held_out_images_are_neither_shuffled_nor_changed(tmp_path: Path) -> None:
    images = open_images(str(write_folder(tmp_path)))
    pixels, labels = (torch.cat(parts) for parts in zip(*images.test_batches(5), strict=True))
    assert labels.tolist() == [0] * PER_CLASS + [1] * PER_CLASS
    assert (pixels.std((2, 3)) < 1e-5).all()  # no black border
    assert (pixels[:, 0, 0, 0].diff() > 0).all()


@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize(
    ("held_out", "kept"),
    [
        (HeldOut(last=4), [PER_CLASS, PER_CLASS - 4]),  # a folder lists class by class
        (HeldOut(last_of_each_class=2), [PER_CLASS - 2, PER_CLASS - 2]),
    ],
)
def test_the_last_training_images_are_held_out(side: int, held_out: HeldOut, kept: list[int], tmp_path: Path) -> None:
    size = 32 if side == 32 else 72
    images = open_images(str(write_folder(tmp_path, side=side)), size=size, held_out=held_out)
    assert len(images) == sum(kept)
    _, labels = images.batch(0, len(images))
    assert labels.bincount().tolist() == kept
    tested, test_labels = (torch.cat(parts) for parts in zip(*images.test_batches(3), strict=True))
    assert test_labels.bincount(minlength=2).tolist() == [PER_CLASS - count for count in kept]
    everything = torch.cat(
        [batch for batch, _ in open_images(str(tmp_path / "train"), size=size).images.plain_batches(12)]
    )
    is_held_out = [label for label in range(2) for index in range(PER_CLASS) if index >= kept[label]]
    assert is_held_out == test_labels.tolist()
    places = [label * PER_CLASS + index for label in range(2) for index in range(kept[label], PER_CLASS)]
    assert torch.equal(tested, everything[places])


@pytest.mark.parametrize(
    ("data", "held_out", "message"),
    [
        ("folder", {"last": 2 * PER_CLASS}, "Cannot hold out 12 images of"),
        ("folder", {"last_of_each_class": PER_CLASS}, "it has 6 of one class"),
        ("folder", {"last": 1, "last_of_each_class": 1}, "either the last"),
        ("folder", {"size": 64}, "at the size of the training images"),
        ("folder", {"crop": 0.0}, r"in \(0, 1\]"),
        ("synthetic", {"last": 5}, "tested on unseen ones"),
    ],
)
def test_tests_that_cannot_be_are_refused(data: str, held_out: dict[str, Any], message: str, tmp_path: Path) -> None:
    place = str(write_folder(tmp_path)) if data == "folder" else data
    with pytest.raises(TrainingConfigError, match=message):
        open_images(place, held_out=HeldOut(**held_out))


def test_large_images_are_tested_at_another_size(tmp_path: Path) -> None:
    images = open_images(str(write_folder(tmp_path, side=80)), size=72, held_out=HeldOut(size=96, crop=0.95))
    assert next(images.test_batches(4))[0].shape == (4, 3, 96, 96)
    assert images.batch(0, 2)[0].shape == (2, 3, 72, 72)


@pytest.mark.parametrize("data", ["folder", "synthetic"])
@pytest.mark.parametrize("size", [32, 72])
def test_rand_augment_changes_training_images_only(data: str, size: int, tmp_path: Path) -> None:
    place = str(write_folder(tmp_path, side=80)) if data == "folder" else data
    changed = open_images(place, size=size, augmentation=Augmentation(rand_augment="rand-m9", color_jitter=False))
    plain = open_images(place, size=size, augmentation=Augmentation(color_jitter=False))
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, labels = changed.batch(3, 12)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # noqa: NPY002
    assert torch.equal(changed.batch(3, 12)[0], first)
    assert torch.equal(plain.batch(3, 12)[1], labels)
    assert not torch.equal(plain.batch(3, 12)[0], first)
    assert torch.equal(next(changed.test_batches(3))[0], next(plain.test_batches(3))[0])


def test_without_held_out_images_nothing_is_tested(tmp_path: Path) -> None:
    """Never on the images that were trained on."""
    images = open_images(str(write_folder(tmp_path, splits=("train",))))
    with pytest.raises(TrainingConfigError, match=r"nothing to test on.*'validation'"):
        next(images.test_batches(4))


def test_windows_are_cut_out_of_a_black_border() -> None:
    torch.manual_seed(0)
    image = torch.arange(1, 1 + 8 * 8.0).view(1, 1, 8, 8).expand(400, 3, 8, 8)
    cropped = cropped_and_flipped(image)
    assert cropped.shape == (400, 3, 8, 8)
    assert torch.equal(cropped[:, 0], cropped[:, 2])
    inside = torch.nn.functional.pad(image[0, 0], (4,) * 4).unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1)
    windows = {tuple(window.flatten().tolist()): flipped for flipped, block in ((0, inside), (1, inside.flip(2)))
               for window in block}  # fmt: skip
    found = [windows[tuple(window[0].flatten().tolist())] for window in cropped]
    assert 140 < sum(found) < 260
    assert len({tuple(window[0].flatten().tolist()) for window in cropped}) > 80


def test_large_images_are_read_when_needed(tmp_path: Path) -> None:
    images = open_images(str(write_folder(tmp_path, side=80)), size=72)
    pixels, labels = images.batch(0, 12)
    assert pixels.shape == (12, 3, 72, 72)
    assert sorted(labels.tolist()) == [0] * PER_CLASS + [1] * PER_CLASS
    assert torch.equal(images.batch(0, 12)[0], pixels)
    tested, _ = next(images.test_batches(4))
    assert tested.shape == (4, 3, 72, 72)


def test_statistics_of_cifar(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cifar-like")
    (pixels, _), *_ = StoredImages(data=str(folder)).plain_batches(1)
    mean = pixels.mean() * 0.25 + CIFAR_MEAN[1]
    assert float(mean) == pytest.approx(20 / 255, abs=0.01)


def test_generated_images() -> None:
    images = open_images("synthetic", size=16, seed=2)
    pixels, labels = images.batch(0, 40)
    assert pixels.shape == (40, 3, 16, 16)
    assert images.num_classes == 20
    assert labels.unique().tolist() == list(range(20))
    assert sum(len(labels) for _, labels in images.test_batches(500)) == GENERATED_TEST


def test_one_class_or_no_data_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(TrainingConfigError, match="Could not read"):
        open_images("torch/no-such-set")
    (tmp_path / "single/train").mkdir(parents=True)
    (tmp_path / "train/dark").rename(tmp_path / "single/train/dark")
    with pytest.raises(TrainingConfigError, match="1 classes"):
        open_images(str(tmp_path / "single"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingConfigError, match="empty"):
        open_images(str(tmp_path / "empty"))
