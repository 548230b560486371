"""Class scores of any classifier, and how often they are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_paraminit.evaluation.learning_curve import LabelledImages

ORDER_SEED = 1111  # of the published evaluations; batch statistics depend on which images share a batch


class ClassScores(nn.Module):
    """A network that puts out class scores only: of several outputs the first, of a record its `logits`.

    Args:
        network: Any image classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to scores (B, K)."""
        output: Any = self.network(images)
        output = getattr(output, "logits", output)
        return output[0] if isinstance(output, (tuple, list)) else output


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norm use the statistics of each batch, as in the published tables; running ones are left alone."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    former = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, tracks) in zip(layers, former, strict=True):
            layer.training, layer.track_running_stats = training, tracks


@torch.no_grad()
def top_accuracies(
    network: nn.Module, data: LabelledImages, *, batch_size: int, ranks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Share of images whose class is among the best scores, in percent. Modes of the layers are the caller's.

    Out of memory, the batch is halved and everything computed anew.

    Args:
        network: Gives class scores (B, K), on any device.
        data: Images (N, C, H, W) and labels (N,). They are taken in a fixed random order.
        batch_size: Images per batch.
        ranks: How many of the best scores count; at most K are looked at.

    Returns:
        `top1`, `top5` and so on; `finite`, the percentage of images whose scores are all finite; `batch_size` as used.
    """
    while True:
        try:
            return _top_accuracies(network, data, batch_size, ranks)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2


def _top_accuracies(
    network: nn.Module, data: LabelledImages, batch_size: int, ranks: Sequence[int]
) -> dict[str, float]:
    device = next(network.parameters()).device
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(ORDER_SEED))
    hits = dict.fromkeys(ranks, 0)
    finite = 0
    for chosen in order.split(batch_size):
        scores = network(data[0][chosen].to(device)).float()
        is_finite = scores.isfinite().all(1)
        best = scores.topk(min(max(ranks), scores.shape[1]), 1).indices
        is_hit = (best == data[1][chosen].to(device).unsqueeze(1)) & is_finite.unsqueeze(1)
        finite += int(is_finite.sum())
        for rank in ranks:
            hits[rank] += int(is_hit[:, :rank].any(1).sum())
    percent = 100 / len(order)
    return {
        **{f"top{rank}": percent * count for rank, count in hits.items()},
        "finite": percent * finite,
        "batch_size": batch_size,
    }
