"""scikit-learn's handwritten digits, real images without a download: for reporting, never for training predictors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_paraminit.errors import MissingDependencyError

# The file is ordered by writer: blocks keep a writer's digits on one side, a random split would leak them.
BLOCKS = {"train": slice(0, 1000), "validation": slice(1000, 1297), "test": slice(1297, 1797)}
MAX_VALUE = 16.0
MEAN, STD = 0.3, 0.35  # of the training block, rounded


def load_digits(split: Literal["train", "validation", "test"], *, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return one block of the 1,797 digits.

    Args:
        split: Which block.
        size: Side in pixels that the 8 x 8 images are enlarged to.

    Returns:
        images: (N, 3, size, size) float32, normalised.
        labels: (N,) int64 in 0..9.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            'The digits come with scikit-learn, which is not installed: pip install "hf_paraminit[data]".'
        ) from error
    digits = datasets.load_digits()
    images = torch.tensor(digits.images[BLOCKS[split]], dtype=torch.float32).unsqueeze(1) / MAX_VALUE
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.tensor(digits.target[BLOCKS[split]], dtype=torch.int64)
    return ((images - MEAN) / STD).repeat(1, 3, 1, 1), labels
