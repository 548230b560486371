"""Progressive tokenisation: the same weights read coarser patches early in training (As-ViT, ICLR 2022, section 3.5).

The patch convolution takes fewer, further spread samples: a larger stride, and a dilation that covers the gap. Weights
and checkpoints do not change; a position embedding is resampled to the coarser grid. For As-ViT, and for the plain
vision transformers of timm, whose own machinery for other image sizes does the resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Format, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hf_paraminit.asvit.architecture import PATCH_STRIDE
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.model import AsViT
from hf_paraminit.asvit.probe import count_macs

# Share of the training at which a stride begins, read off the published figure (300 epochs, switches at 80 and 132).
PUBLISHED_SCHEDULE = ((0.0, 16), (80 / 300, 8), (132 / 300, 4))

Levels = tuple[tuple[float, int], ...]
Tokenized = AsViT | VisionTransformer


def set_tokenization(model: nn.Module, stride: int | None = None, dilation: int | None = None) -> None:
    """Let a vision transformer read one token per `stride` pixels; the weights stay.

    Args:
        model: An As-ViT, a `VisionTransformer` of timm with square patches, or a module that holds one.
        stride: Pixels between tokens, at least the model's own; None for its own, 4 for As-ViT and the patch size
            otherwise.
        dilation: Pixels between the samples of a kernel; None for the largest that leaves no gap between kernels,
            max(1, (stride - 1) // (kernel - 1)).

    Raises:
        ScoreError: Another kind of model, or a stride or dilation that cannot work.
    """
    part = tokenized_part(model)
    least = own_stride(part)
    stride = least if stride is None else stride
    if stride < least or (dilation is not None and dilation < 1):
        raise ScoreError(
            f"Tokens of {type(part).__name__} need a stride of at least {least}, its own, and a dilation of at least "
            f"1, found {stride}, {dilation}."
        )
    convolution = _convolution(part)
    kernel = convolution.kernel_size[0]
    spread = max(1, (stride - 1) // max(1, kernel - 1)) if dilation is None else dilation
    convolution.stride, convolution.dilation = (stride, stride), (spread, spread)
    if isinstance(part, VisionTransformer):
        _resize_grid(part, is_coarse=(stride, spread) != (least, 1))


def tokenized_part(model: nn.Module) -> Tokenized:
    """The vision transformer whose tokens can be changed: the model or, first found, a module inside a wrapper.

    Raises:
        ScoreError: There is none.
    """
    for module in model.modules():
        if isinstance(module, AsViT):
            return module
        if isinstance(module, VisionTransformer):
            _check_patches(module)
            return module
    raise ScoreError(
        f"Progressive tokenisation needs an As-ViT or a VisionTransformer of timm, found {type(model).__name__}. Build "
        'one with timm.create_model("asvit", arch=...) or timm.create_model("vit_small_patch16_224").'
    )


def own_stride(model: nn.Module) -> int:
    """Pixels between the tokens that a model was built for.

    Raises:
        ScoreError: Another kind of model.
    """
    part = tokenized_part(model)
    return PATCH_STRIDE if isinstance(part, AsViT) else part.patch_embed.patch_size[0]


@dataclass(frozen=True)
class TokenizationSchedule:
    """Which stride each epoch is trained at. The epoch alone decides, so a resumed run needs no state.

        schedule = TokenizationSchedule.published(model, epochs=300)
        for epoch in range(300):
            schedule.step(model, epoch)
            train_one_epoch(model)
            schedule.finish(model)  # before evaluating or saving

    Args:
        epochs: Of the whole training; or its optimiser steps, for a schedule that counts steps.
        levels: (share of the epochs at which it begins, stride), the first at 0.

    Raises:
        ScoreError: No epochs, or levels that do not begin at 0 and rise.
    """

    epochs: int
    levels: Levels = PUBLISHED_SCHEDULE

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.levels]
        if self.epochs < 1 or not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise ScoreError(
                f"A schedule needs epochs and levels that begin at 0 and rise below 1, found {self.epochs} epochs and "
                f"{self.levels}."
            )

    @classmethod
    def published(cls, model: nn.Module, epochs: int) -> TokenizationSchedule:
        """The published shares with 4, 2 and 1 times the model's own stride.

        Raises:
            ScoreError: as for `own_stride` and for the class.
        """
        factor = own_stride(model)
        return cls(epochs, tuple((start, stride // PATCH_STRIDE * factor) for start, stride in PUBLISHED_SCHEDULE))

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

    def macs(self, model: nn.Module, img_size: int | None = None) -> dict[int, int]:
        """Multiply-accumulates for one image at each stride, as torch counts them; the model's own tokens come back.

        Args:
            model: as for `set_tokenization`.
            img_size: Side of the images; None for the one that the model was built for.
        """
        part = tokenized_part(model)
        convolution = _convolution(part)
        height, width = part.patch_embed.img_size if img_size is None else (img_size, img_size)
        image = torch.zeros(1, convolution.in_channels, height, width).to(convolution.weight)
        was_training = part.training
        counts = {}
        try:
            part.eval()
            for _, stride in self.levels:
                set_tokenization(part, stride)
                counts[stride] = count_macs(part, image)
        finally:
            part.train(was_training)
            self.finish(part)
        return counts

    def relative_cost(self, model: nn.Module, img_size: int | None = None) -> float:
        """Multiply-accumulates of the whole training over those of training at the model's own tokens throughout."""
        full = self._own(model).macs(model, img_size)
        counts = {**self.macs(model, img_size), **full}
        spent = sum(counts[self.stride_at(epoch)] for epoch in range(self.epochs))
        return spent / (self.epochs * full[own_stride(model)])

    def describe(self, model: nn.Module, img_size: int | None = None, *, unit: str = "epochs") -> str:
        """What each level costs, counted on the model itself, in one line.

        Args:
            model: as for `set_tokenization`.
            img_size: as for `macs`.
            unit: What `epochs` counts.
        """
        (full,) = self._own(model).macs(model, img_size).values()
        counts = self.macs(model, img_size)
        strides = [self.stride_at(epoch) for epoch in range(self.epochs)]
        parts = [
            f"stride {stride} for {strides.count(stride)} {unit} ({counts[stride] / 1e6:.4g} MMACs an image, "
            f"{counts[stride] / full:.1%} of its own tokens)"
            for _, stride in self.levels
        ]
        return f"{', '.join(parts)}; together {self.relative_cost(model, img_size):.1%}"

    def _own(self, model: nn.Module) -> TokenizationSchedule:
        return TokenizationSchedule(1, ((0.0, own_stride(model)),))


def _convolution(part: Tokenized) -> nn.Conv2d:
    convolution = part.patch_embed.proj
    assert isinstance(convolution, nn.Conv2d)
    return convolution


def _check_patches(vit: VisionTransformer) -> None:
    """Refuse plain transformers whose patches are not one square convolution."""
    embed = vit.patch_embed
    if not isinstance(embed, PatchEmbed) or not isinstance(embed.proj, nn.Conv2d):
        raise ScoreError(
            f"Progressive tokenisation changes a patch convolution, which this {type(vit).__name__} does not have: its "
            f"patches are made by {type(embed).__name__}."
        )
    if embed.patch_size[0] != embed.patch_size[1]:
        raise ScoreError(f"Progressive tokenisation needs square patches, found {tuple(embed.patch_size)}.")


def _resize_grid(vit: VisionTransformer, *, is_coarse: bool) -> None:
    """Let timm resample the position embedding to whatever grid the convolution gives, or leave that to its settings.

    The grid is ceil(side / stride), as in As-ViT; zeros around the image where that needs them.
    """
    embed, convolution = vit.patch_embed, _convolution(vit)
    is_dynamic = is_coarse or not embed.strict_img_size  # timm's constructor sets these together
    vit.dynamic_img_size, embed.flatten = is_dynamic, not is_dynamic  # type: ignore[misc]
    embed.output_fmt = Format.NHWC if is_dynamic else Format.NCHW
    stride, spread, kernel = convolution.stride[0], convolution.dilation[0], convolution.kernel_size[0]
    span = spread * (kernel - 1) + 1
    missing = [max(0, (-(-side // stride) - 1) * stride + span - side) for side in embed.img_size or (0, 0)]
    convolution.padding = tuple((amount + 1) // 2 for amount in missing) if is_coarse else (0, 0)
