import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import TASK, stripes
from torch import Tensor

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.tasks import Task, load_task, published_noise

COLORS = {"blue": (0, 0, 200), "red": (200, 0, 0)}


def write_images(folder: Path, count: int, colors: dict[str, tuple[int, int, int]] = COLORS) -> None:
    for name, color in colors.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (20, 14), tuple(min(255, value + index) for value in color)).save(
                folder / name / f"{index:03d}.png"
            )


def rows_of(block: tuple[Tensor, Tensor]) -> set[bytes]:
    return {image.numpy().tobytes() for image in block[0]}


@pytest.mark.parametrize(
    ("data", "sizes", "classes"),
    [
        ("digits", (1000, 297, 500), 10),
        ("synthetic", (1000, 300, 500), 10),
        ("synthetic-novel", (200, 400, 1000), 20),
        ("photos", (1000, 300, 500), 4),
    ],
)
def test_the_blocks_of_built_in_data(data: str, sizes: tuple[int, int, int], classes: int) -> None:
    task = load_task(data)
    blocks = (task.train, task.validation, task.test)
    assert tuple(len(images) for images, _ in blocks) == sizes
    assert task.num_classes == classes
    assert task.image_shape == (3, 32, 32)
    assert all(labels.unique().numel() == classes for _, labels in blocks)
    assert task.digest == load_task(data).digest
    if data != "digits":  # a few digits are equal pixel by pixel
        assert not rows_of(task.train) & (rows_of(task.validation) | rows_of(task.test))
        assert not rows_of(task.validation) & rows_of(task.test)


def test_novel_classes_come_ten_times_each() -> None:
    assert load_task("synthetic-novel").train[1].bincount().tolist() == [10] * 20


def test_photo_crops_of_all_sizes_fit_or_are_left_out() -> None:
    assert load_task("photos", size=48).image_shape == (3, 48, 48)


def test_a_folder_of_classes_is_split_within_each_class(tmp_path: Path) -> None:
    write_images(tmp_path, 60)
    task = load_task(str(tmp_path), size=8)
    sizes = [len(images) for images, _ in (task.train, task.validation, task.test)]
    assert sizes == [72, 24, 24]
    assert task.train[1].bincount().tolist() == [36, 36]
    assert task.train[0].mean((0, 2, 3)).abs().max() < 1e-4
    # blue is class 0: sorted names
    assert task.test[0][task.test[1] == 0][:, 2].mean() > task.test[0][task.test[1] == 0][:, 0].mean()


def test_a_folder_with_train_and_test_keeps_them_apart(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 40)
    write_images(tmp_path / "test", 5)
    task = load_task(str(tmp_path), size=8)
    assert [len(images) for images, _ in (task.train, task.validation, task.test)] == [64, 16, 10]


def test_other_classes_in_the_test_folder_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 40)
    write_images(tmp_path / "test", 5, {"blue": (0, 0, 9), "green": (0, 9, 0)})
    with pytest.raises(TrainingConfigError, match="train has the classes blue, red, test has blue, green"):
        load_task(str(tmp_path), size=8)


def test_one_class_and_too_few_images_are_both_reported(tmp_path: Path) -> None:
    write_images(tmp_path, 20, {"only": (9, 9, 9)})
    with pytest.raises(TrainingConfigError, match=r"12 images, fewer than a batch of 64; .* only one class"):
        load_task(str(tmp_path), size=8)


@pytest.mark.parametrize("content", [None, b"not an image"])
def test_a_folder_without_readable_images_is_refused(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "class").mkdir()
    if content is not None:
        (tmp_path / "class" / "a.png").write_bytes(content)
    with pytest.raises(TrainingConfigError, match="Could not read split"):
        load_task(str(tmp_path))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(TrainingConfigError, match=r"'digit'.*'digits', 'synthetic'"):
        load_task("digit")


def with_train(images: Tensor, labels: Tensor) -> Task:
    return dataclasses.replace(TASK, train=(images, labels))


def test_nan_pixels_are_counted() -> None:
    images, labels = stripes(120, 0)
    images[3, 0, 0, 0] = float("nan")
    images[7] = float("inf")
    with pytest.raises(TrainingConfigError, match="2 of 120 images of the train block have NaN"):
        load_task(with_train(images, labels))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_out_of_range(wrong: int) -> None:
    images, labels = stripes(120, 0)
    labels[5] = wrong
    with pytest.raises(TrainingConfigError, match=r"labels of the train block span .* expected 0\.\.2"):
        load_task(with_train(images, labels))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(9, 3, 8), torch.zeros(9, dtype=torch.int64), r"must be \(N, C, H, W\) float"),
        (torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64), "float"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64), "has 0 images"),
        (torch.zeros(9, 3, 8, 8), torch.zeros(8, dtype=torch.int64), "has 9 images and labels of shape"),
        (torch.zeros(9, 3, 8, 8), torch.zeros(9), "labels of the train block must be integers"),
        (torch.zeros(9, 1, 8, 8), torch.zeros(9, dtype=torch.int64), "images of the validation block are"),
    ],
)
def test_tensors_of_the_wrong_kind(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        load_task(with_train(images, labels))


def test_noise_is_of_pixels_and_stays_within_their_range() -> None:
    task = load_task("digits", size=16)
    images, labels = task.noisy("test", 0.08)
    assert torch.equal(labels, task.test[1])
    assert torch.equal(images, task.noisy("test", 0.08)[0])
    assert torch.equal(task.noisy("test", 0.0)[0], task.test[0])
    before, after = ((block * 0.35 + 0.3) for block in (task.test[0], images))
    assert after.min() >= -1e-6
    assert after.max() <= 1 + 1e-6
    is_inside = (before > 0.3) & (before < 0.7)  # four standard deviations from either end
    assert (after - before)[is_inside].std().item() == pytest.approx(0.08, rel=0.05)
    assert (published_noise(32), published_noise(224)) == (0.08, 0.18)


def test_large_images_keep_their_aspect(tmp_path: Path) -> None:
    """A photo twice as wide as high, bright in the middle half, which is all that is seen of it."""
    pixels = np.zeros((128, 256, 3), dtype=np.uint8)
    pixels[:, 64:192] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    task = load_task(str(tmp_path), size=96, batch_size=4)
    assert task.image_shape == (3, 96, 96)
    assert task.test[0].std() < 1e-3
