"""Resizing in the frequency domain: keep or pad the low frequencies of the cosine transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.fft import dctn, idctn
from torch import Tensor


def resized_spectrum(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Resize all dimensions by truncating or zero-padding the orthonormal DCT-II.

    Args:
        tensor: trained values.
        shape: of the result, of the same number of dimensions.

    Returns:
        float32, scaled by sqrt(new size / old size), so that constants, and smooth tensors nearly, keep their values.
        Of a white spectrum the mean square shrinks by new size / old size.
    """
    spectrum = dctn(tensor.double().numpy(), norm="ortho")
    corner = tuple(slice(min(old, new)) for old, new in zip(tensor.shape, shape, strict=True))
    resized = torch.zeros(tuple(shape), dtype=torch.float64)
    resized[corner] = torch.from_numpy(spectrum[corner])
    scale = math.sqrt(math.prod(shape) / math.prod(tensor.shape))
    return torch.from_numpy(scale * idctn(resized.numpy(), norm="ortho")).float()
