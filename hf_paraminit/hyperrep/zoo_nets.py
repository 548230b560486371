"""The small convolutional networks of the published zoos, with their key names (`module_list.<index>.weight`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


@dataclass(frozen=True, kw_only=True)
class ZooNet:
    """An architecture of `ZooCNN`.

    Attributes:
        convolutions: (channels, kernel side, whether 2x2 max-pooling follows) of each.
        hidden: Width of the hidden linear layer.
        in_chans: Channels of the images it was made for.
        img_size: Their side in pixels.
        always_dropout: Whether drop-out modules are there even at rate 0, where they only shift the indices.
    """

    convolutions: Sequence[tuple[int, int, bool]]
    hidden: int
    in_chans: int
    img_size: int
    always_dropout: bool = False


ZOO_NETS: dict[str, ZooNet] = {
    "cnn-tiny": ZooNet(convolutions=((8, 3, False), (6, 3, True)), hidden=16, in_chans=1, img_size=8),
    "cnn-small": ZooNet(
        convolutions=((8, 5, True), (6, 5, True), (4, 2, False)), hidden=20, in_chans=1, img_size=28
    ),
    "cnn-medium": ZooNet(
        convolutions=((6, 5, True), (9, 5, True), (6, 2, False)), hidden=20, in_chans=1, img_size=28
    ),
    "cnn-large": ZooNet(
        convolutions=((16, 3, True), (32, 3, True), (15, 3, True)),
        hidden=20,
        in_chans=3,
        img_size=32,
        always_dropout=True,
    ),
}  # fmt: skip


class ZooCNN(nn.Module):
    """Convolution, pooling, activation, drop-out, repeated; then two linear layers.

    Args:
        name: Entry of `ZOO_NETS`: "cnn-small", "cnn-medium" and "cnn-large" are those of the published zoos (2464, 3047
            and 10853 parameters), "cnn-tiny" has 1232.
        num_classes: Outputs.
        in_chans: Channels of the images; None for those of the published zoo.
        img_size: Their side in pixels; likewise.
        activation: Entry of `ACTIVATIONS`.
        dropout: Rate.

    Raises:
        TrainingConfigError: An unknown name, or images too small for the network.
    """

    def __init__(
        self,
        name: str = "cnn-small",
        *,
        num_classes: int = 10,
        in_chans: int | None = None,
        img_size: int | None = None,
        activation: str = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for what, choice, known in (("network", name, ZOO_NETS), ("activation", activation, ACTIVATIONS)):
            if choice not in known:
                raise TrainingConfigError(f"There is no {what} {choice!r} of zoos; there are {', '.join(known)}.")
        net = ZOO_NETS[name]
        channels, side = in_chans or net.in_chans, img_size or net.img_size
        tail = [nn.Dropout(dropout)] if net.always_dropout or dropout > 0 else []
        layers: list[nn.Module] = []
        for outputs, kernel, has_pool in net.convolutions:
            layers.append(nn.Conv2d(channels, outputs, kernel))
            layers += [nn.MaxPool2d(2)] if has_pool else []
            layers += [ACTIVATIONS[activation](), *(type(module)(module.p) for module in tail)]
            channels, side = outputs, (side - kernel + 1) // (2 if has_pool else 1)
        if side < 1:
            raise TrainingConfigError(f"Images of side {img_size} are too small for {name}; use {net.img_size}.")
        layers += [nn.Flatten(), nn.Linear(channels * side * side, net.hidden), ACTIVATIONS[activation]()]
        layers += [*(type(module)(module.p) for module in tail), nn.Linear(net.hidden, num_classes)]
        self.module_list = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        """(B, num_classes) scores of images (B, C, H, W)."""
        for module in self.module_list:
            images = module(images)
        return images

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.module_list[-1]


def example_images(in_chans: int, img_size: int, *, count: int = 2, seed: int = 0) -> Tensor:
    """(count, in_chans, img_size, img_size) of N(0, 1), for checks of networks."""
    return torch.randn(count, in_chans, img_size, img_size, generator=torch.Generator().manual_seed(seed))
