"""Progressive tokenisation: the same weights read coarser patches early in training (As-ViT, ICLR 2022, section 3.5).

The first convolution takes fewer, further spread samples: a larger stride, and a dilation that covers the gap. Weights
and checkpoints do not change; a position embedding is resampled to the coarser grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_paraminit.asvit.architecture import PATCH_STRIDE
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.probe import count_macs

# Share of the epochs at which a stride begins, read off the published figure (300 epochs, switches at 80 and 132).
PUBLISHED_SCHEDULE = ((0.0, 16), (80 / 300, 8), (132 / 300, 4))


def set_tokenization(model: nn.Module, stride: int = PATCH_STRIDE, dilation: int | None = None) -> None:
    """Let an As-ViT read one token per `stride` pixels; the weights stay.

    Args:
        model: An `AsViT`.
        stride: Pixels between tokens, at least 4; 4 is the model's own.
        dilation: Pixels between the samples of a kernel; None for the largest that leaves no gap between kernels,
            max(1, (stride - 1) // (kernel - 1)).

    Raises:
        ScoreError: Another kind of model, or a stride or dilation that cannot work.
    """
    convolution = _patch_convolution(model)
    if stride < PATCH_STRIDE or (dilation is not None and dilation < 1):
        raise ScoreError(
            f"Tokens need a stride of at least {PATCH_STRIDE} and a dilation of at least 1, found {stride}, {dilation}."
        )
    spread = max(1, (stride - 1) // (convolution.kernel_size[0] - 1)) if dilation is None else dilation
    convolution.stride, convolution.dilation = (stride, stride), (spread, spread)


@dataclass(frozen=True)
class TokenizationSchedule:
    """Which stride each epoch is trained at. The epoch alone decides, so a resumed run needs no state.

        schedule = TokenizationSchedule(epochs=300)
        for epoch in range(300):
            schedule.step(model, epoch)
            train_one_epoch(model)
            schedule.finish(model)  # before evaluating or saving

    Args:
        epochs: Of the whole training.
        levels: (share of the epochs at which it begins, stride), the first at 0.

    Raises:
        ScoreError: No epochs, or levels that do not begin at 0 and rise.
    """

    epochs: int
    levels: tuple[tuple[float, int], ...] = PUBLISHED_SCHEDULE

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.levels]
        if self.epochs < 1 or not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise ScoreError(
                f"A schedule needs epochs and levels that begin at 0 and rise below 1, found {self.epochs} epochs and "
                f"{self.levels}."
            )

    def stride_at(self, epoch: int) -> int:
        """Stride of an epoch, counted from 0."""
        return [stride for start, stride in self.levels if epoch >= round(start * self.epochs)][-1]

    def step(self, model: nn.Module, epoch: int) -> None:
        """Set the model to the stride of an epoch; call it at the beginning of each, also of a resumed run.

        Raises:
            ScoreError: as for `set_tokenization`.
        """
        set_tokenization(model, self.stride_at(epoch))

    def finish(self, model: nn.Module) -> None:
        """Set the model to its own tokens, for evaluation and saving."""
        set_tokenization(model)

    def macs(self, model: nn.Module, img_size: int) -> dict[int, int]:
        """Multiply-accumulates for one image at each stride, as torch counts them; the model's own tokens come back."""
        device = next(model.parameters()).device
        image = torch.zeros(1, _patch_convolution(model).in_channels, img_size, img_size, device=device)
        counts = {}
        try:
            for _, stride in self.levels:
                set_tokenization(model, stride)
                counts[stride] = count_macs(model, image)
        finally:
            self.finish(model)
        return counts

    def relative_cost(self, model: nn.Module, img_size: int) -> float:
        """Multiply-accumulates of the whole training over those of training at the model's own tokens throughout."""
        counts = {**self.macs(model, img_size), **TokenizationSchedule(1, ((0.0, PATCH_STRIDE),)).macs(model, img_size)}
        spent = sum(counts[self.stride_at(epoch)] for epoch in range(self.epochs))
        return spent / (self.epochs * counts[PATCH_STRIDE])


def _patch_convolution(model: nn.Module) -> nn.Conv2d:
    convolution = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not hasattr(model, "forward_pooled") or not isinstance(convolution, nn.Conv2d):
        raise ScoreError(
            f"Progressive tokenisation needs an As-ViT, found {type(model).__name__}. Build one with "
            'timm.create_model("asvit", arch=...).'
        )
    return convolution
