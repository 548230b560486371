"""Which way up? Crops of scikit-learn's two sample photos, turned by quarter circles: natural texture, no download."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_paraminit.errors import MissingDependencyError

# Shares of a photo's width; the gap between training and testing keeps crops from overlapping.
COLUMNS = {"train": (0.0, 0.6), "validation": (0.65, 0.8), "test": (0.8, 1.0)}
CROPS = {"train": 1000, "validation": 300, "test": 500}
SHRINK = (1, 2, 3)  # a crop is taken after scaling the photo down by one of these
SEEDS = {"train": 0, "validation": 1, "test": 2}


def load_photo_rotations(split: Literal["train", "validation", "test"], *, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return crops and by how many quarter circles each was turned.

    Sky and leaves look the same every way up, so some labels cannot be known: good for the direction of an effect only.

    Args:
        split: Which part of the photos: columns from the left 60 % for training, from the right 35 % otherwise.
        size: Side of a crop in pixels, at most 60: crops of the narrowest part, scaled down most, are no wider.

    Returns:
        images: (N, 3, size, size) float32, normalised to about [-2, 2].
        labels: (N,) int64 in 0..3, each equally often.

    Raises:
        MissingDependencyError: scikit-learn, or the Pillow that it reads photos with, is not installed.
    """
    try:
        from sklearn.datasets import load_sample_images

        photos = load_sample_images().images
    except ImportError as error:
        raise MissingDependencyError(
            'The photos come with scikit-learn, which is not installed: pip install "hf_paraminit[data]".'
        ) from error
    generator = torch.Generator().manual_seed(SEEDS[split])
    strips = [strip for photo in photos for strip in _strips(torch.tensor(photo), COLUMNS[split], size)]
    count = CROPS[split]
    labels = torch.arange(count) % 4
    which = torch.randint(len(strips), (count,), generator=generator)
    places = torch.rand(count, 2, generator=generator)
    crops = [
        torch.rot90(_crop(strips[index], place, size), turns, (1, 2))
        for index, place, turns in zip(which.tolist(), places, labels.tolist(), strict=True)
    ]
    return (torch.stack(crops) - 0.5) / 0.25, labels


def _strips(photo: Tensor, columns: tuple[float, float], size: int) -> list[Tensor]:
    """The columns of a photo (H, W, 3) as (3, h, w) in [0, 1], at each scale that still holds a crop."""
    first, last = (round(share * photo.shape[1]) for share in columns)
    strip = photo[:, first:last].permute(2, 0, 1).float() / 255
    scaled = [F.avg_pool2d(strip, factor) for factor in SHRINK]
    return [strip for strip in scaled if min(strip.shape[1:]) >= size]


def _crop(strip: Tensor, place: Tensor, size: int) -> Tensor:
    top, left = (
        int(share * (length - size + 1)) for share, length in zip(place.tolist(), strip.shape[1:], strict=True)
    )
    return strip[:, top : top + size, left : left + size]
