"""A plain stack of 3x3 convolutions (VGG, arXiv 1409.1556), with batch norm or with no norm at all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PlainVGG(nn.Module):
    """Convolutions and poolings, global average, one classifier; torch's own default initialisation.

    timm's VGG ends in two layers of 4,096 units, which would be most of a small network.

    Args:
        widths: Output channels of each convolution; 0 stands for a pooling by 2.
        num_classes: Outputs.
        in_chans: Channels of the images.
        batch_norm: Whether a batch norm follows each convolution.
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int = 10, in_chans: int = 3, batch_norm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for width in widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to the channels before global pooling (B, C, h, w)."""
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, in_chans, H, W)."""
        return self.head(self.forward_features(images).mean((2, 3)))

    def get_classifier(self) -> nn.Module:
        """The last layer, as timm's models name it."""
        return self.head
