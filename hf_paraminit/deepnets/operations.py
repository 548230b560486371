"""The operations of DeepNets-1M cells as torch modules (arXiv 2110.13100, appendix A).

Sub-module names and positions are part of the format: published graphs and predictors name parameters by them
(`op.1.weight` is a convolution because position 0 of `op` is the ReLU). Convolutions have no bias, linear layers do.

Axes in shapes: B batch, C channels, H and W sides of the feature map, T tokens (pixels).
"""

import math

import torch
from torch import Tensor, nn

from hf_paraminit.deepnets.genotype import ArchitectureError, parse_operation

NUM_HEADS = 8


def make_norm(norm: str | None, channels: int) -> nn.Module:
    """Batch norm for names that start with "bn" (running statistics only if they contain "track"); none for None.

    Raises:
        ArchitectureError: any other name.
    """
    if norm is None:
        return nn.Identity()
    if norm.startswith("bn"):
        return nn.BatchNorm2d(channels, track_running_stats="track" in norm)
    raise ArchitectureError(f"norm must be None or start with 'bn' (as 'bnorm', 'bn-track'); found {norm!r}.")


def make_operation(name: str, channels: int, stride: int, norm: str | None) -> nn.Module:
    """Build one operation of a cell; its input and output both have `channels` channels.

    Args:
        name: one of `genotype.OPERATIONS`.
        channels: width C.
        stride: 1, or 2 to halve the resolution.
        norm: see `make_norm`.
    """
    match parse_operation(name):
        case "none", _:
            return NoConnection()
        case "skip_connect", _:
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)
        case "max_pool", int(kernel):
            return nn.MaxPool2d(kernel, stride=stride, padding=kernel // 2)
        case "avg_pool", int(kernel):
            return nn.AvgPool2d(kernel, stride=stride, padding=kernel // 2, count_include_pad=False)
        case "conv", int(kernel):
            return _conv(channels, kernel, stride, norm)
        case "conv2", int(kernel):
            return _factorized_conv(channels, kernel, stride, norm)
        case "sep_conv", int(kernel):
            first = _depthwise_separable(channels, kernel, stride, norm)
            return ConvBlock(*first, *_depthwise_separable(channels, kernel, 1, norm))
        case "dil_conv", int(kernel):
            return ConvBlock(*_depthwise_separable(channels, kernel, stride, norm, dilation=2))
        case "msa", _:
            return TransformerBlock(channels, stride)
        case "cse", _:
            return ChannelSqueezeExcite(channels, stride)
    raise AssertionError(f"operation {name!r} has no builder")


class NoConnection(nn.Module):
    """The operation `none`: contributes nothing to the sum of its step."""

    def forward(self, x: Tensor) -> None:
        """Return None whatever the input."""
        return None


class Subsample(nn.Module):
    """Keep every `stride`-th row and column: (B, C, H, W) to (B, C, H / stride, W / stride)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Slice the map; a stride of 1 returns the input itself."""
        return x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]


class ConvBlock(nn.Module):
    """ReLU, convolutions and norm in one sequence named `op`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        return self.op(x)


def pointwise_block(in_channels: int, out_channels: int, norm: str | None) -> ConvBlock:
    """ReLU, 1x1 convolution, norm: adapts the width of a cell's input."""
    return ConvBlock(nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), make_norm(norm, out_channels))


class FactorizedReduce(nn.Module):
    """Halve the resolution with two 1x1 stride-2 convolutions of half width, the second shifted by one pixel.

    The sides of the input must be even, so that both convolutions give the same size.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str | None) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.bn = make_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / 2, W / 2)."""
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class ChannelSqueezeExcite(nn.Module):
    """Channel attention (`cse`, arXiv 1709.01507) with a hard-swish gate, then slicing to the stride."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 2)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(channels // 2, channels)
        self.gate = nn.Hardswish()
        self.subsample = Subsample(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / stride, W / stride)."""
        gate = self.gate(self.fc2(self.relu(self.fc1(x.mean(dim=(2, 3))))))
        return self.subsample(x * gate.view(*gate.shape, 1, 1))


class SelfAttention(nn.Module):
    """Multi-head self-attention with a joint projection without bias.

    The softmax is written out: a fused attention kernel leaves no softmax in the autograd graph, and the graphs that
    published predictors were trained on have one `msa` node per block.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % NUM_HEADS:
            raise ArchitectureError(f"Attention splits the width into {NUM_HEADS} heads; found width {channels}.")
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to (B, T, C)."""
        query, key, value = (
            projection.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for projection in self.to_qkv(x).chunk(3, dim=-1)
        )  # (B, heads, T, C / heads) each
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return self.to_out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The transformer's two-layer perceptron, as wide inside as outside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Position 2 is where the published networks keep a dropout, which they never use.
        self.net = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Identity(), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to (B, T, C)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """The operation `msa`: a pre-norm transformer block over the pixels, then slicing to the stride."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.attn = SelfAttention(channels)
        self.ln2 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.subsample = Subsample(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / stride, W / stride)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.ln1(tokens))
        tokens = tokens + self.ff(self.ln2(tokens))
        return self.subsample(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


def _conv(channels: int, kernel: int, stride: int, norm: str | None) -> nn.Module:
    conv = nn.Conv2d(channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return ConvBlock(nn.ReLU(), conv, make_norm(norm, channels))


def _factorized_conv(channels: int, kernel: int, stride: int, norm: str | None) -> nn.Module:
    half = kernel // 2
    return ConvBlock(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, kernel), stride=(1, stride), padding=(0, half), bias=False),
        nn.Conv2d(channels, channels, (kernel, 1), stride=(stride, 1), padding=(half, 0), bias=False),
        make_norm(norm, channels),
    )


def _depthwise_separable(
    channels: int, kernel: int, stride: int, norm: str | None, *, dilation: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        make_norm(norm, channels),
    ]
