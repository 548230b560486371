"""Operations of a cell against torch's own layers and the definitions in the papers."""

import pytest
import torch
from torch import nn

from hf_paraminit.deepnets.genotype import OPERATIONS
from hf_paraminit.deepnets.operations import (
    ChannelSqueezeExcite,
    FactorizedReduce,
    SelfAttention,
    TransformerBlock,
    make_operation,
)

CHANNELS = 16


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "none"])
def test_shape_is_kept_or_halved(name: str, stride: int) -> None:
    operation = make_operation(name, CHANNELS, stride, "bnorm")
    features = torch.randn(2, CHANNELS, 8, 12, requires_grad=True)
    output = operation(features)
    assert output.shape == (2, CHANNELS, 8 // stride, 12 // stride)
    output.square().sum().backward()
    assert features.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in operation.parameters())


def test_none_contributes_nothing() -> None:
    operation = make_operation("none", CHANNELS, 2, None)
    assert operation(torch.randn(1, CHANNELS, 4, 4)) is None
    assert not list(operation.parameters())


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "conv" in name])
def test_convolutions_start_with_relu_and_have_no_bias(name: str) -> None:
    operation = make_operation(name, CHANNELS, 1, "bnorm")
    convolutions = [layer for layer in operation.modules() if isinstance(layer, nn.Conv2d)]
    assert convolutions
    assert all(layer.bias is None for layer in convolutions)
    features = torch.randn(2, CHANNELS, 8, 8)
    torch.testing.assert_close(operation(features), operation(features.relu()))


@pytest.mark.parametrize(
    ("name", "receptive_field"),
    [
        ("conv_1x1", (1, 1)),
        ("conv_5x5", (5, 5)),
        ("conv_7x1_1x7", (7, 7)),
        ("sep_conv_3x3", (5, 5)),  # two convolutions
        ("sep_conv_5x5", (9, 9)),
        ("dil_conv_3x3", (5, 5)),
        ("dil_conv_5x5", (9, 9)),
        ("max_pool_3x3", (3, 3)),
    ],
)
def test_receptive_field(name: str, receptive_field: tuple[int, int]) -> None:
    operation = make_operation(name, CHANNELS, 1, None).double()
    features = torch.rand(1, CHANNELS, 15, 15, dtype=torch.double)
    change = torch.zeros_like(features)
    change[0, :, 7, 7] = 2.0
    rows, columns = ((operation(features + change) - operation(features)).abs().amax((0, 1)) > 0).nonzero().unbind(1)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == receptive_field


def test_average_pooling_ignores_the_padding() -> None:
    pooled = make_operation("avg_pool_3x3", CHANNELS, 1, None)(torch.ones(1, CHANNELS, 4, 4))
    torch.testing.assert_close(pooled, torch.ones(1, CHANNELS, 4, 4))


def test_factorized_reduce_sees_every_pixel_of_both_diagonals() -> None:
    reduce = FactorizedReduce(3, 4, None)
    features = torch.rand(2, 3, 6, 6)
    even = torch.einsum("oi,bihw->bohw", reduce.conv_1.weight[:, :, 0, 0], features[:, :, 0::2, 0::2])
    odd = torch.einsum("oi,bihw->bohw", reduce.conv_2.weight[:, :, 0, 0], features[:, :, 1::2, 1::2])
    torch.testing.assert_close(reduce(features), torch.cat([even, odd], dim=1))


def test_channel_squeeze_excite_gates_channels() -> None:
    operation = ChannelSqueezeExcite(CHANNELS, stride=2)
    features = torch.randn(2, CHANNELS, 4, 4)
    gate = nn.functional.hardswish(operation.fc2(operation.fc1(features.flatten(2).mean(-1)).relu()))
    torch.testing.assert_close(operation(features), (gate[:, :, None, None] * features)[:, :, ::2, ::2])


def test_self_attention_equals_torch() -> None:
    attention = SelfAttention(CHANNELS)
    reference = nn.MultiheadAttention(CHANNELS, num_heads=8, bias=True, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.to_qkv.weight)
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(attention.to_out[0].weight)
        reference.out_proj.bias.copy_(attention.to_out[0].bias)
    tokens = torch.randn(2, 9, CHANNELS)
    torch.testing.assert_close(attention(tokens), reference(tokens, tokens, tokens)[0])


def test_transformer_block_treats_pixels_alike() -> None:
    block = TransformerBlock(CHANNELS, stride=1)
    features = torch.randn(2, CHANNELS, 3, 4)
    order = torch.randperm(12)
    shuffled = block(features.flatten(2)[:, :, order].unflatten(2, (3, 4)))
    torch.testing.assert_close(shuffled, block(features).flatten(2)[:, :, order].unflatten(2, (3, 4)))
