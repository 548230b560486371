"""Training images: generated, and stored in a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.training.images import GENERATED_TEST, open_images
from hf_paraminit.training.stored_images import CIFAR_MEAN, StoredImages, _cropped_and_flipped

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


def test_without_held_out_images_nothing_is_tested(tmp_path: Path) -> None:
    """Never on the images that were trained on."""
    images = open_images(str(write_folder(tmp_path, splits=("train",))))
    with pytest.raises(TrainingConfigError, match=r"nothing to test on.*'validation'"):
        next(images.test_batches(4))


def test_windows_are_cut_out_of_a_black_border() -> None:
    torch.manual_seed(0)
    image = torch.arange(1, 1 + 8 * 8.0).view(1, 1, 8, 8).expand(400, 3, 8, 8)
    cropped = _cropped_and_flipped(image)
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
