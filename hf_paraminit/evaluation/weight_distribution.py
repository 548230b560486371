"""The values a network starts from: their scale, their tails, and filters that are copies of each other."""

from __future__ import annotations

import math
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DUPLICATE = 0.99  # filters with a larger absolute cosine count as copies (tiling leaves such)
MAX_FILTERS = 1024  # of a layer; pairs grow with the square


@torch.no_grad()
def weight_distribution(network: nn.Module) -> dict[str, float]:
    """Means over all convolution and linear weights.

    Returns:
        `std_over_he` (std relative to sqrt(2 / fan in)), `kurtosis` (3 for a normal law), `spectral_norm`, and
        `duplicate_share` of all pairs of filters within a layer; constant tensors count in the first and third only.
    """
    weights = [
        module.weight.detach().float()
        for module in network.modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and module.weight.numel() > 1
    ]
    kurtoses = [_kurtosis(weight) for weight in weights if float(weight.std()) > 0]
    pairs = [_duplicate_pairs(weight.flatten(1)) for weight in weights]
    return {
        "std_over_he": _mean([float(weight.std()) / math.sqrt(2 / weight[0].numel()) for weight in weights]),
        "kurtosis": _mean(kurtoses),
        "spectral_norm": _mean([float(torch.linalg.matrix_norm(weight.flatten(1), 2)) for weight in weights]),
        "duplicate_share": sum(found for found, _ in pairs) / max(1, sum(count for _, count in pairs)),
    }


def _kurtosis(weight: Tensor) -> float:
    centred = weight - weight.mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


def _duplicate_pairs(filters: Tensor) -> tuple[int, int]:
    """Copies among the pairs of filters (O, D), and how many pairs there are; a filter of one value is no direction."""
    if filters.shape[1] < 2 or len(filters) < 2:
        return 0, 0
    directions = F.normalize(filters[:MAX_FILTERS], dim=1)
    cosines = (directions @ directions.T).abs().triu(1)
    return int((cosines > DUPLICATE).sum()), len(directions) * (len(directions) - 1) // 2


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0
