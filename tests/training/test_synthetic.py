"""Batches of the synthetic mixture: reproducible, balanced, well conditioned, neither trivial nor impossible."""

import json
import pickle
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_paraminit.errors import ParamInitError
from hf_paraminit.training.synthetic import SPLITS, SyntheticImages, SyntheticSpec, normalize

GOLDEN = Path(__file__).parents[1] / "golden" / "synthetic" / "images.npz"

# The recorded images, by the name of their array: specification, split and batch size of batch 0.
GOLDEN_CASES = {
    "base": (SyntheticSpec(preset="base"), "train", 64),
    "tiny_novel_gray": (SyntheticSpec(seed=7, grayscale=True), "novel", 20),
    "tiny_textured_64": (SyntheticSpec(seed=3, size=64, textured_background=True), "validation", 4),
}


@pytest.fixture(scope="module")
def tiny() -> SyntheticImages:
    return SyntheticImages(SyntheticSpec())


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_images_equal_the_recorded_ones(name: str) -> None:
    spec, split, batch_size = GOLDEN_CASES[name]
    images, labels = SyntheticImages(spec).batch(split, 0, batch_size)
    with np.load(GOLDEN) as golden:
        difference = np.abs(images.numpy() - golden[name] / np.float32(255))
        assert labels.tolist() == golden[f"{name}_labels"].tolist()
    # Rounding to 8 bits costs at most half a level; the rest is room for another processor's sine.
    assert difference.mean() < 1 / 255
    assert np.quantile(difference, 0.99) < 2 / 255


@pytest.mark.parametrize(
    ("spec", "shape", "num_classes"),
    [
        (SyntheticSpec(), (6, 3, 32, 32), 10),
        (SyntheticSpec(preset="base", size=64), (6, 3, 64, 64), 256),
        (SyntheticSpec(grayscale=True), (6, 1, 32, 32), 10),
        (SyntheticSpec(preset=(3, 0, 8, 1), size=16), (6, 3, 16, 16), 12),
        (SyntheticSpec(textured_background=True), (6, 3, 32, 32), 10),
    ],
)
def test_shape_dtype_and_range(spec: SyntheticSpec, shape: tuple[int, ...], num_classes: int) -> None:
    data = SyntheticImages(spec)
    images, labels = data.batch("train", 0, 6)
    assert data.num_classes == num_classes
    assert images.shape == shape
    assert images.dtype == torch.float32
    assert labels.shape == (6,)
    assert labels.dtype == torch.int64
    assert 0 <= images.min() < images.max() <= 1
    assert 0 <= labels.min() <= labels.max() < num_classes


def test_a_batch_depends_on_nothing_but_its_address(tiny: SyntheticImages) -> None:
    later_first = [tiny.batch("train", index, 16) for index in (5, 2)]
    other_worker = pickle.loads(pickle.dumps(SyntheticImages(SyntheticSpec())))
    other_worker.batch("validation", 0, 3)
    in_order = [other_worker.batch("train", index, 16) for index in (2, 5)]
    for (images, labels), (same_images, same_labels) in zip(later_first, reversed(in_order), strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_no_global_random_state_is_used_or_moved(tiny: SyntheticImages) -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = tiny.batch("train", 0, 8)[0]
    state, legacy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(tiny.batch("train", 0, 8)[0], expected)
    np.random.seed(0)  # noqa: NPY002
    tiny.batch("train", 1, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy_state)  # noqa: NPY002


def test_seed_split_and_batch_give_disjoint_images(tiny: SyntheticImages) -> None:
    batches = [tiny.batch(split, index, 32)[0] for split in SPLITS for index in range(2)]
    batches.append(SyntheticImages(SyntheticSpec(seed=1)).batch("train", 0, 32)[0])
    images = torch.cat(batches).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


def test_validation_shows_the_trained_classes_and_novel_shows_others() -> None:
    """Mean images of the classes go together in train and validation, but not in train and novel."""
    data = SyntheticImages(SyntheticSpec(preset=(32, 0, 0, 0), grayscale=True))

    def class_means(split: str) -> torch.Tensor:
        images, labels = data.batch(split, 0, 32 * 24)
        return torch.stack([images[labels == label].mean(0).flatten() for label in range(32)])

    def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
        pairs = zip(first, second, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    train = class_means("train")
    assert correlation(train, class_means("validation")) > 0.75
    assert correlation(train, class_means("novel")) < 0.5


def test_classes_are_balanced() -> None:
    base = SyntheticImages(SyntheticSpec(preset="base"))
    labels = torch.cat([base.batch("train", index, 160)[1] for index in range(8)])
    families = torch.bucketize(labels, torch.tensor([128, 192, 200]), right=True)
    share = families.bincount(minlength=4) / len(labels)
    assert torch.allclose(share, torch.tensor([128, 64, 8, 56]) / 256, atol=0.04)

    counts = SyntheticImages(SyntheticSpec()).batch("train", 0, 1000)[1].bincount(minlength=10)
    assert counts.tolist() == [100] * 10


def test_labels_are_not_in_a_fixed_order(tiny: SyntheticImages) -> None:
    orders = {tuple(tiny.batch("train", index, 10)[1].tolist()) for index in range(20)}
    assert len(orders) == 20
    first_labels = torch.tensor([order[0] for order in orders])
    assert len(first_labels.unique()) > 4


def test_gray_images_are_neither_empty_nor_flat() -> None:
    base = SyntheticImages(SyntheticSpec(preset="base", grayscale=True))
    images = torch.cat([base.batch("train", index, 500)[0] for index in range(20)]).flatten(1)
    assert images.isfinite().all()
    mean, std = images.mean(1), images.std(1)
    assert ((mean >= 0.02) & (mean <= 0.98)).float().mean() >= 0.99
    assert (std > 0.02).float().mean() >= 0.999


def test_images_survive_storage_in_8_bits(tiny: SyntheticImages) -> None:
    images = tiny.batch("train", 0, 32)[0]
    stored = (images * 255).round().to(torch.uint8)
    assert torch.allclose(stored / 255, images, atol=0.5 / 255 + 1e-6)


def test_normalize() -> None:
    assert normalize(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2, 0, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_difficulty_for_a_linear_classifier(seed: int) -> None:
    """Colour keeps raw pixels from giving the classes away; they must still say more than chance (10 %)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = SyntheticImages(SyntheticSpec(seed=seed))
    images, labels = data.batch("train", 0, 4000)
    held_out, held_out_labels = data.batch("validation", 0, 2000)
    classifier = linear_model.LogisticRegression(C=1e-3, max_iter=200, tol=1e-3)
    classifier.fit(normalize(images).flatten(1).numpy(), labels.numpy())
    accuracy = classifier.score(normalize(held_out).flatten(1).numpy(), held_out_labels.numpy())
    assert 0.25 < accuracy < 0.70


def test_spec_is_frozen_hashable_and_json() -> None:
    spec = SyntheticSpec(seed=3, size=64, preset=(4, 3, 2, 1), grayscale=True)
    assert SyntheticSpec(**json.loads(json.dumps(asdict(spec)))) == spec
    assert len({spec, SyntheticSpec(), SyntheticSpec()}) == 2
    assert SyntheticSpec(preset="base").class_counts == (128, 64, 8, 56)
    assert spec.class_counts == (4, 3, 2, 1)
    with pytest.raises(FrozenInstanceError):
        spec.seed = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        SyntheticSpec(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be an int in 0..4294967295, got -1"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"size": 30}, "size must be a multiple of 8 in 16..128, got 30"),
        ({"size": 8}, "size"),
        ({"size": 256}, "size"),
        ({"size": "32"}, "size"),
        ({"preset": "huge"}, "preset must be one of tiny, base, or a tuple of class counts, got 'huge'"),
        ({"preset": (4, 2, 2)}, "preset must hold 4 class counts"),
        ({"preset": (4, 2, -2, 2)}, "preset must hold 4 class counts"),
        ({"preset": {"shapes": 8}}, "preset must hold 4 class counts"),
        ({"preset": None}, "preset"),
        ({"preset": (0, 0, 9, 0)}, "9 shapes, but only 8 exist"),
        ({"preset": (1, 0, 0, 0)}, "at least 2 classes"),
        ({"grayscale": "no"}, "grayscale must be True or False, got 'no'"),
        ({"textured_background": 1}, "textured_background"),
        ({"grayscale": True, "textured_background": True}, "textured_background needs colours"),
        ({"version": "2"}, "version must be '1' in this release, got '2'"),
    ],
)
def test_wrong_specifications_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParamInitError, match=message) as caught:
        SyntheticSpec(**arguments)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ParamInitError, match=r"seed .*; size .*; version "):
        SyntheticSpec(seed=-1, size=1, version="0")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (("test", 0, 4), "split must be one of train, validation, novel, got 'test'"),
        (("train", -1, 4), "batch_index must be an int in 0"),
        (("train", 0, 0), "batch_size must be an int in 1"),
        (("train", 0, 2.0), "batch_size"),
    ],
)
def test_wrong_batch_addresses_are_refused(tiny: SyntheticImages, address: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ParamInitError, match=message):
        tiny.batch(*address)  # type: ignore[arg-type]
