import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.lets.images import Augmentation, AugmentedBatches, ReadAhead
from hf_paraminit.training.stored_images import open_timm_images

NUM_CLASSES, PER_CLASS, SIDE = 2, 5, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue pictures with noise."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (root / name).mkdir()
        for index in range(PER_CLASS):
            pixels = generator.integers(0, 80, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 150
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def batches(folder: Path, **settings: object) -> AugmentedBatches:
    known = {"batch_size": 4, "image_shape": (3, SIDE, SIDE), "num_classes": NUM_CLASSES}
    pictures, _ = open_timm_images("", "train", root=str(folder))
    return AugmentedBatches(pictures, **{**known, **settings})  # type: ignore[arg-type]


def test_a_batch_follows_from_its_number_alone(folder: Path) -> None:
    source = batches(folder)
    first = [source(index) for index in (0, 1, 7)]
    again = [batches(folder)(index) for index in (0, 1, 7)]
    for (images, shares), (others, other_shares) in zip(first, again, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(shares, other_shares)
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], batches(folder, seed=1)(0)[0])


def test_random_states_stay_as_they_were(folder: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    batches(folder)(3)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_images_are_mixed_and_labels_are_shares(folder: Path) -> None:
    images, shares = batches(folder)(0)
    assert images.shape == (4, 3, SIDE, SIDE)
    assert shares.shape == (4, NUM_CLASSES)
    assert torch.allclose(shares.sum(1), torch.ones(4))


def test_repeats_show_an_image_several_times_in_a_row(folder: Path) -> None:
    source = batches(folder, batch_size=6)
    places = source._places(0)
    assert [places[start] for start in (0, 3)] == [places[end] for end in (2, 5)]
    assert len(set(places)) == 2
    single = batches(folder, augmentation=Augmentation(repeats=1), batch_size=2)
    epoch = [place for index in range(single.batches_per_epoch) for place in single._places(index)]
    assert sorted(epoch) == list(range(NUM_CLASSES * PER_CLASS))


def test_without_variation_the_picture_is_what_it_was(folder: Path) -> None:
    plain = Augmentation(
        auto_augment=None, color_jitter=0.0, random_erasing=0.0, mixup=0.0, cutmix=0.0, label_smoothing=0.0, repeats=1
    )
    images, shares = batches(folder, augmentation=plain)(0)
    assert torch.equal(images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2)), shares.argmax(1) == 1)
    assert torch.equal(shares.amax(1), torch.ones(4))


def test_reading_ahead_changes_nothing_and_follows_jumps(folder: Path) -> None:
    source = batches(folder)
    ahead = ReadAhead(source, num_workers=0)
    for index in (0, 1, 2, 7, 8, 3):
        assert torch.equal(ahead(index)[0], source(index)[0]), index


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(folder: Path) -> None:
    source = batches(folder)
    ahead = ReadAhead(source, num_workers=2)
    assert all(torch.equal(ahead(index)[0], source(index)[0]) for index in range(4))


def test_data_that_cannot_be_used_are_refused(folder: Path) -> None:
    with pytest.raises(TrainingConfigError, match="even number"):
        batches(folder, batch_size=3)
    with pytest.raises(TrainingConfigError, match="as many images"):
        batches(folder, batch_size=1000)
    with pytest.raises(TrainingConfigError, match="found the class 1, expected 0 to 0"):
        [batches(folder, num_classes=1)(index) for index in range(8)]
